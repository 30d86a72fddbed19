"""Peak memory of a round against the number of clients in it, with a group size that stays the same.

Each number of clients gets a fresh process, and all of them train equally many groups, for a heap also grows with use: with fewer
clients there are more rounds. Told are the peak of the resident memory above what was resident when model and data had been loaded
and nothing trained, which must not grow by more than 10%, and the peak itself, which a run records as `peak_memory_bytes`.
Clients hold rows of their own, which lie in a memory-mapped file.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import TINY, Setting, Size, build_model, machine, make_federation, make_prepared, make_tokens, one_round

ROUNDS = 3  # with the most clients
LIMIT = 1.10


def resident(field: str) -> float:
    """MB of a field of the process's memory accounts: VmRSS, now, or VmHWM, the highest since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def forget_peak() -> None:
    """The highest is from here on what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(setting: Setting, group: int, size: Size, rounds: int) -> dict[str, float]:
    """MB of the peak over the rounds, and how far it lies above what was resident before them."""
    torch.set_num_threads(1)
    prepared = make_prepared(setting, make_tokens(setting, size), build_model(size))
    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, dict[str, object]] = {"local": {"grouping": "grouped"}, "engine": {"group_size": group}}
        federation = make_federation(prepared, Path(folder), **changes)
        gc.collect()
        forget_peak()
        before = resident("VmRSS")
        for _ in range(rounds):
            one_round(federation)
        peak = resident("VmHWM")
        federation.run_dir.close()
    return {"above": peak - before, "peak": peak}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32, 128, 512])
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument(
        "--smallest", action="store_true", help="a tiny model, 4 and 16 clients: a check, not a measurement"
    )
    parser.add_argument("--rounds", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    clients, group, repetitions = (
        ([4, 16], 4, 1) if options.smallest else (options.clients, options.group, options.repetitions)
    )
    size = TINY if options.smallest else Size()
    if options.rounds:
        print(json.dumps(measure(Setting(options.clients[0], 1, 16), options.group, size, options.rounds)))
        return
    print(machine())
    print(f"batches of 1 x 16 tokens, groups of {group}; the least of {repetitions} runs")
    arguments = ["--group", str(group), *(["--smallest"] if options.smallest else [])]
    first: dict[str, float] = {}
    for number in clients:
        rounds = ROUNDS * max(clients) // number
        best = min((child(number, rounds, arguments) for _ in range(repetitions)), key=lambda one: one["above"])
        first = first or best
        above, peak = best["above"] / first["above"], best["peak"] / first["peak"]
        print(
            f"  {number:4} clients, {rounds:3} rounds: {best['above']:6.1f} MB above what was loaded, ratio {above:.2f} to "
            f"{clients[0]} clients; peak {best['peak']:.0f} MB, ratio {peak:.2f}"
        )
    print(f"from {clients[0]} to {clients[-1]} clients within {LIMIT - 1:.0%}: {'yes' if above <= LIMIT else 'no'}")


def child(clients: int, rounds: int, arguments: list[str]) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--clients", str(clients), "--rounds", str(rounds), *arguments]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
