"""A million registered devices: what they take in memory, what one selection takes, and a thousand rounds without training.

A selection is compared with one `numpy.argpartition` over an array of as many numbers, in the same turn. It is the whole of it: who
is online, how long everybody would take, and the choice. In the rounds, clients answer with losses drawn at random; the clock, the
selector and its feedback are those of a run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import psutil
from common import machine, ratio, rotate

from fedloom.config.devices import OvercommitWait
from fedloom.devices.generate import generate
from fedloom.devices.population import Population, Work
from fedloom.selection import build
from fedloom.selection.base import Selector
from fedloom.selection.cohort import Cohort
from fedloom.selection.pool import Feedback, Pool
from fedloom.selection.synchronous import Synchronous

SELECTORS = (
    {"name": "uniform"},
    {"name": "oort"},
    {"name": "size"},
    {"name": "availability"},
    {"name": "round_robin"},
    {"name": "refl"},
    {"name": "power_of_choice", "candidates": 5000},
    {"name": "fedcs", "deadline": 600.0, "share": 0.001},
)


def feedback(cohort: Cohort, random: np.random.Generator) -> Feedback:
    """What clients would have told."""
    assert cohort.attempts is not None
    clients, arrived = cohort.attempts.clients, cohort.attempts.arrived
    loss = random.gamma(2.0, 0.5, len(clients))
    return Feedback(clients, arrived, np.where(arrived, 20, 0), loss, loss**2)


def schedule(selector: Selector, population: Population, sizes: np.ndarray, wanted: int) -> Synchronous:
    """Rounds of so many, of 1.3 times as many that are asked."""
    wait = OvercommitWait(kind="overcommit")
    return Synchronous(np.arange(len(population)), wanted, selector, 0, sizes, population, wait)


def run(rounds: Synchronous, work: Work, begin: int, count: int) -> float:
    """The seconds that a round takes, on average."""
    random = np.random.default_rng(begin)
    started = time.process_time()
    for number in range(begin, begin + count):
        rounds.told(number, feedback(rounds.round(number, work), random))
    return (time.process_time() - started) / count


def one_selection(rounds: Synchronous, work: Work) -> Callable[[], float]:
    """A selection at another time each turn, from what the rounds so far have taught."""
    number = [1000]

    def timed() -> float:
        number[0] += 1
        pool = Pool(number[0], 0, rounds.sizes, rounds.now + 977.0 * number[0], rounds.population, work)
        started = time.process_time()
        rounds.selector.select(pool, rounds.in_flight, rounds._known)
        return time.process_time() - started

    return timed


def argpartition(numbers: np.ndarray, count: int) -> float:
    """The yardstick."""
    started = time.process_time()
    np.argpartition(numbers, len(numbers) - count)
    return time.process_time() - started


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--wanted", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--smallest", action="store_true", help="2,000 devices: a check, not a measurement")
    options = parser.parse_args()
    devices, wanted, rounds = options.devices, options.wanted, options.rounds
    if options.smallest:
        devices, wanted, rounds = 2000, 20, 30
    print(machine())
    before = psutil.Process().memory_info().rss
    sizes = np.random.default_rng(0).lognormal(3.0, 1.0, devices).astype(np.int64) + 2
    population = generate(devices, seed=0, sizes=sizes, correlation=0.5, cost=5.0)
    population.availability.online(0.0)
    held = psutil.Process().memory_info().rss - before
    print(f"{devices:,} devices, {len(population.availability.starts):,} intervals online")
    print(f"  memory of the population: {held / 1e6:,.0f} MB, {held / devices:.0f} bytes a device")
    work = Work(100_000.0, 60.0 * np.minimum(sizes, 40), 100_000.0)

    numbers = np.random.default_rng(1).random(devices)
    methods: dict[str, Callable[[], float]] = {"argpartition": lambda: argpartition(numbers, wanted)}
    made = {str(spec["name"]): schedule(build(spec, None), population, sizes, wanted) for spec in SELECTORS}
    for name, own in made.items():
        run(own, work, 1, min(20, rounds))
        methods[name] = one_selection(own, work)
    seconds = rotate(methods, options.repetitions)
    for name in made:
        print(f"  one selection over argpartition, {name:<16}{ratio(seconds[name], seconds['argpartition'])}")

    small = population.take(np.arange(devices // 10))
    part = Work(work.bytes_down, np.asarray(work.passes)[: devices // 10], work.bytes_up)
    for name in ("uniform", "oort"):
        whole = schedule(build({"name": name}, None), population, sizes, wanted)
        tenth = schedule(build({"name": name}, None), small, sizes[: devices // 10], min(wanted, devices // 20))
        each = run(whole, work, 1, rounds)
        little = run(tenth, part, 1, max(rounds // 10, 10))
        days = whole.now / 86_400
        print(
            f"  {rounds:,} rounds of {wanted:,} with {name}: {days:.1f} virtual days, {each * rounds / 60:.1f} minutes of CPU time"
        )
        print(f"    a round over one of a tenth of the devices: {each / little:.2f}")
    print(f"  the yardstick: {1e3 * statistics.median(seconds['argpartition']):.1f} ms")


if __name__ == "__main__":
    main()
