"""Peak memory of a round against the number of clients in it, with a group size that stays the same.

Each number of clients gets a fresh process: the peak of its resident memory over three rounds, above what was resident when model
and data had been loaded and nothing trained. Clients hold rows of their own, which lie in a memory-mapped file.

Measured twice: with the allocator as it comes, whose heap also fragments, and with a mapping of its own for every larger tensor,
which shows what is really held.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import TINY, Setting, Size, build_model, machine, make_federation, make_prepared, make_tokens, one_round

ROUNDS = 3
ALLOCATORS = {
    "the allocator as it comes": {},
    "a mapping for every tensor": {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"},
}


def resident(field: str) -> float:
    """MB of a field of the process's memory accounts: VmRSS, now, or VmHWM, the highest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """The highest is from here on what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(setting: Setting, group: int, size: Size) -> dict[str, float]:
    """MB before the rounds, and MB that their peak lies above."""
    torch.set_num_threads(1)
    prepared = make_prepared(setting, make_tokens(setting, size), build_model(size))
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, dict[str, object]] = {"local": {"grouping": "grouped"}, "engine": {"group_size": group}}
        federation = make_federation(prepared, Path(folder), **changes)
        gc.collect()
        forget_peak()
        before = resident("VmRSS")
        for _ in range(ROUNDS):
            one_round(federation)
        above = resident("VmHWM") - before
        federation.run_dir.close()
    return {"before": before, "above": above}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32, 128, 512])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--smallest", action="store_true", help="a tiny model, 4 and 16 clients: a check, not a measurement"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    clients, group, repetitions = (
        ([4, 16], 4, 1) if options.smallest else (options.clients, options.group, options.repetitions)
    )
    if options.child:
        size = TINY if options.smallest else Size()
        print(json.dumps(measure(Setting(options.clients[0], 1, 16), options.group, size)))
        return
    print(machine())
    print(f"batches of 1 x 16 tokens, groups of {group}; the least of {repetitions} runs, {ROUNDS} rounds each")
    arguments = ["--group", str(group), *(["--smallest"] if options.smallest else [])]
    for name, settings in ALLOCATORS.items():
        print(f"  {name}")
        peaks: list[float] = []
        for number in clients:
            found = [child(number, arguments, settings) for _ in range(repetitions)]
            best = min(found, key=lambda one: one["above"])
            peaks.append(best["above"])
            print(
                f"  {number:4} clients: {best['above']:6.1f} MB above {best['before']:.0f} MB, "
                f"ratio {best['above'] / peaks[0]:.2f} to {clients[0]} clients"
            )


def child(clients: int, arguments: list[str], settings: dict[str, str]) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--child", "--clients", str(clients), *arguments]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | settings).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
