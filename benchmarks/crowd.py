"""Many clients of a real federation: each with a TLS connection and keys of its own, signed answers, 100 rounds, no training.

A round is done when every client has answered; their mean is checked, so none is lost. Printed are the coordinator's seconds a
round, the CPU seconds of all processes, and the peak memory of the coordinator and of the broker, and by how much each grew for
twice the clients: 2 is linear.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import pairwise
from pathlib import Path

from common import machine
from remote_fedloom import measure
from remote_parts import MB, Measured

NUMBERS = 1_000
TOGETHER = 32
"""Clients in a process."""


def report(clients: int, rounds: int, own: Measured) -> None:
    """What was measured with so many clients."""
    rest = own.seconds[1:]
    each = ", ".join(f"{label} {peak / MB:.0f} MB" for label, peak in own.server.items())
    print(
        f"  {clients:4} clients: {clients * rounds:,} answers to {clients * rounds:,} asks; {own.median:.3f} s a round, median of "
        f"{len(rest)} [{min(rest):.3f}..{max(rest):.3f}]; {own.cpu:.3f} CPU s; {each}; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--smallest", action="store_true", help="4 and 8 clients, 3 rounds: a check, not a measurement")
    options = parser.parse_args()
    rounds = 3 if options.smallest else options.rounds
    print(machine())
    print(f"\n{NUMBERS:,} float32 numbers to each client and back, {rounds} rounds")
    found: list[tuple[int, Measured]] = []
    for clients in [4, 8] if options.smallest else options.clients:
        with tempfile.TemporaryDirectory() as folder:
            found.append((clients, measure(Path(folder), NUMBERS, rounds, clients, TOGETHER)))
        report(clients, rounds, found[-1][1])
    for (few, less), (many, more) in pairwise(found):
        growth = {"seconds a round": more.median / less.median, "CPU seconds a round": more.cpu / less.cpu}
        growth |= {f"memory of the {label}": peak / less.server[label] for label, peak in more.server.items()}
        each = ", ".join(f"{what} {ratio:.2f}" for what, ratio in growth.items())
        print(f"  {many} clients over {few}, {many / few:.2f} times as many: {each}")


if __name__ == "__main__":
    main()
