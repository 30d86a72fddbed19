"""A real federation's round without training: fedloom, Flower and NVFlare, each with two clients on loopback, TLS and keys.

Every round the server sends a vector of float32 numbers, each client sends back another of the same length, and the server takes
their mean, which is checked. Printed are the seconds of a round at the server and the CPU seconds of all processes, the first
round left out; the peak resident memory of all processes on the server's side; and ratios, medians over the turns of what was
measured in the same turn. The peers are installed by pip in environments of their own, on first use. NVFlare pushes messages;
`nvflare_bytes` is the same with the numbers as bytes, which it sends in the message itself, whereas receivers fetch its arrays.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from common import machine, ratio
from remote_parts import MB, Measured

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedloom": ("remote_fedloom", {}),
    "flower": ("remote_flower", {}),
    "nvflare": ("remote_nvflare", {}),
    "nvflare_bytes": ("remote_nvflare", {"as_bytes": True}),
}


class Size(NamedTuple):
    """A size of message: numbers, rounds (of Flower fewer: a round takes seconds), and how fast fedloom is to be over each."""

    numbers: int
    rounds: int
    flowers: int
    wanted: dict[str, float]


SIZES = {
    "4 kB": Size(1_000, 60, 8, {"flower": 50.0, "nvflare": 1.0}),
    "100 MB": Size(25_000_000, 6, 4, {"flower": 6.0, "nvflare": 1 / 1.3}),
}
MEMORY = 0.6
"""Of a peer's, at most."""


def report(name: str, own: Measured) -> None:
    """What was measured of one contestant."""
    rest = own.seconds[1:]
    each = ", ".join(f"{label} {peak / MB:.0f}" for label, peak in own.server.items())
    print(
        f"  {name:13} {own.median:8.4f} s a round, median of {len(rest)} [{min(rest):.4f}..{max(rest):.4f}], first "
        f"{own.seconds[0]:.2f}; {own.cpu:.3f} CPU s; server's side at most {own.together / MB:.0f} MB together ({each}); "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def compare(size: str, found: dict[str, list[Measured]]) -> None:
    """The ratios: a peer's round over fedloom's, and fedloom's memory over a peer's."""
    own = found.pop("fedloom", [])
    for name, turns in found.items() if own else ():
        times = [each.median for each in turns], [each.median for each in own]
        wanted = SIZES[size].wanted.get(name)
        faster = statistics.median(b / a for b, a in zip(*times, strict=True))
        verdict = f" (wanted {wanted:.2f} or more: {'met' if faster >= wanted else 'MISSED'})" if wanted else ""
        print(f"  {size}: time of {name} over fedloom's {ratio(*times)}{verdict}")
        print(f"  {size}: CPU seconds of {name} over fedloom's {ratio([e.cpu for e in turns], [e.cpu for e in own])}")
        memory = [each.together for each in own], [each.together for each in turns]
        share = statistics.median(a / b for a, b in zip(*memory, strict=True))
        verdict = f" (wanted {MEMORY} or less: {'met' if share <= MEMORY else 'MISSED'})"
        print(f"  {size}: memory of fedloom's server side over that of {name} {ratio(*memory)}{verdict}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contestants", nargs="*", help=f"of {', '.join(CONTESTANTS)}; all of them when left out")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--repetitions", type=int, default=3, help="turns in which everybody is measured")
    parser.add_argument(
        "--smallest", action="store_true", help="fedloom alone, 3 rounds of 4 kB: a check, not a measurement"
    )
    options = parser.parse_args()
    names = ["fedloom"] if options.smallest else options.contestants or list(CONTESTANTS)
    if unknown := set(names) - set(CONTESTANTS):
        parser.error(f"no contestant is called {', '.join(sorted(unknown))}")
    print(machine())
    for size in ["4 kB"] if options.smallest else options.sizes:
        own = SIZES[size]
        print(f"\n{size}: {own.numbers:,} float32 numbers to each of 2 clients and back")
        found: dict[str, list[Measured]] = {name: [] for name in names}
        for _ in range(1 if options.smallest else options.repetitions):
            for name in names:
                module, settings = CONTESTANTS[name]
                rounds = 3 if options.smallest else own.flowers if name == "flower" else own.rounds
                with tempfile.TemporaryDirectory() as folder:
                    measured = importlib.import_module(module).measure(Path(folder), own.numbers, rounds, **settings)
                report(name, measured)
                found[name].append(measured)
        compare(size, found)


if __name__ == "__main__":
    main()
