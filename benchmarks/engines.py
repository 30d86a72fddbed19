"""The machinery of a round on every engine: rounds whose clients train nothing, against the same sums in a plain NumPy loop.

Everything else of a round happens, as in `loop.py`: selection, groups, starting points, differences, bytes counted, the fold in
float64, the server's step, the records of the round and of every client. What the clients "learnt" was made beforehand, in every
process that plays them. With `engine: ray` the vector goes to the workers, and folded groups come back; `--with-flower` adds
Flower's simulation, in an environment of its own, whose clients answer with the same rows.

The methods take their rounds in turn, so that all see the same machine. Several processes work: time on the wall is what a user
waits, CPU time of all that have a part in it is what the machine spends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import Setting, machine, make_federation, make_prepared, one_round, ratio, rotate
from loop import TOLERANCE, Array, Untrained, Vector, numpy_round, without_training

import fedloom.engines.ray as ray_engine
from fedloom.config.engine import RayEngine
from fedloom.engines.ray_worker import Actor, facts
from fedloom.engines.worker import Worker
from fedloom.local.prepare import Prepared

HERE = Path(__file__).parent
FLOWER = "1.41.0"


def make_player(clients: int, length: int, rows: Array) -> type[Actor]:
    """The class of a worker whose clients train nothing."""

    class Player(Actor):
        """A worker that is ready at once, for there is no model to load."""

        def open(self, experiment: Any) -> tuple[Any, ...]:
            torch.set_num_threads(1)
            prepared = make_players(clients, length)
            self._worker = Worker(prepared, self._store)
            self._worker._trainer = untrained(prepared, torch.tensor(rows))
            return "done", facts(prepared), "this machine"

    return Player


def make_players(clients: int, length: int) -> Prepared:
    """Clients who have learnt vectors of a length."""
    setting = Setting(clients, 1, 8)
    return make_prepared(setting, torch.ones(clients, 2, setting.tokens, dtype=torch.long), Vector(length))


def untrained(prepared: Prepared, rows: torch.Tensor) -> Untrained:
    """What hands out these rows where training would be."""
    experiment = prepared.experiment
    made = Untrained(prepared.binding, prepared.task, prepared.table, experiment.local, experiment.seed, False)
    made.rows = rows
    return made


class Clock:
    """Times what a method does, on the wall and in CPU time of its processes: those of this one, and those below `others`."""

    def __init__(self) -> None:
        self.cpu: dict[str, list[float]] = {}

    def timed(self, name: str, work: Callable[[], Any], others: Callable[[], list[psutil.Process]]) -> float:
        """Seconds on the wall, or what the work says that they were."""
        before, started = self._used(others()), time.perf_counter()
        said = work()
        wall = said if isinstance(said, float) else time.perf_counter() - started
        after = self._used(others())
        self.cpu.setdefault(name, []).append(sum(used - before.get(pid, 0.0) for pid, used in after.items()))
        return wall

    def _used(self, others: list[psutil.Process]) -> dict[int, float]:
        used = {0: time.process_time()}
        for process in others:
            with suppress(psutil.Error):
                times = process.cpu_times()
                used[process.pid] = times.user + times.system
        return used


def flower_python() -> str:
    """The interpreter of the peer's environment, which is made on first use."""
    home = HERE / ".venv-flwr"
    python = str(home / "bin" / "python")
    check = [python, "-c", "import flwr.simulation, ray"]
    if not Path(python).exists() or subprocess.run(check, capture_output=True, check=False).returncode:
        venv.create(home, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"flwr[simulation]=={FLOWER}", f"numpy=={np.__version__}"], check=True)
    return python


@contextmanager
def flower_rounds(
    folder: Path, start: Array, rows: Array, weights: list[float], workers: int
) -> Iterator[Callable[[], float]]:
    """The peer's process, its simulation started; a call is a round there, and answers its seconds."""
    for name, values in {"start": start, "rows": rows, "weights": np.array(weights)}.items():
        np.save(folder / f"{name}.npy", values)
    command = [flower_python(), str(HERE / "flower_rounds_child.py"), str(folder), str(workers)]
    with (folder / "flower.log").open("w") as log:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def one() -> float:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write("round\n")
        child.stdin.flush()
        for line in child.stdout:
            if line.startswith('{"seconds"'):
                return float(json.loads(line)["seconds"])
        raise SystemExit(f"the peer's process ended:\n{(folder / 'flower.log').read_text()[-2000:]}")

    try:
        yield one
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(timeout=120)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--length", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2, help="of `engine: ray`, and of Flower's simulation")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--with-flower", action="store_true", help=f"also flwr {FLOWER}, in benchmarks/.venv-flwr")
    parser.add_argument(
        "--smallest", action="store_true", help="40 clients and 1,000 numbers: a check, not a measurement"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    clients, length = (40, 1000) if options.smallest else (options.clients, options.length)
    print(machine())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = make_players(clients, length)
        engine = RayEngine(kind="ray", workers=options.workers, threads=1, device="cpu")
        there = replace(here, experiment=here.experiment.model_copy(update={"engine": engine}))
        local = make_federation(here, folder)
        rows = without_training(local)
        ray_engine.Actor = make_player(clients, length, rows)  # type: ignore[misc]
        ray = make_federation(there, folder)
        stack.enter_context(closing(ray.engine))
        start, weights = here.initial.numpy(), here.train.sizes.astype(float).tolist()
        ours, theirs = one_round(local), one_round(ray)
        if not torch.equal(ours, theirs):
            raise SystemExit("the engines' results differ")
        difference = np.abs(ours.numpy() - numpy_round(start, rows, weights)).max()
        if not difference <= TOLERANCE:
            raise SystemExit(f"the results differ by {difference}")
        clock, this = Clock(), psutil.Process()
        mine = this.children(recursive=True)  # Ray's; workers have been there since the first round
        methods: dict[str, Callable[[], float]] = {
            "numpy": lambda: clock.timed("numpy", lambda: numpy_round(start, rows, weights), list),
            "local": lambda: clock.timed("local", lambda: one_round(local), list),
            "ray": lambda: clock.timed("ray", lambda: one_round(ray), lambda: mine),
        }
        if options.with_flower:
            flower = stack.enter_context(flower_rounds(folder, start, rows, weights, options.workers))
            methods["flower"] = lambda: clock.timed(
                "flower", flower, lambda: [p for p in this.children(recursive=True) if p not in mine]
            )
        seconds = rotate(methods, options.repetitions)
        cpu = {name: own[1:] for name, own in clock.cpu.items()}  # the first turn does not count
        size = local.engine.sizing.group_size
        local.run_dir.close()
        ray.run_dir.close()
    print(f"{clients} clients, {length:,} numbers each, groups of {size}, {options.workers} workers")
    print(f"  engine local and engine ray: the same bytes; largest difference from NumPy {difference:.1e}")
    names = {"local": "engine local", "ray": "engine ray", "flower": f"Flower's simulation, flwr {FLOWER}"}
    for name in [m for m in methods if m != "numpy"]:
        each = 1e6 * statistics.median(seconds[name]) / clients
        wall, used = ratio(seconds[name], seconds["numpy"]), ratio(cpu[name], cpu["numpy"])
        print(f"  {names[name]:35} {wall} x numpy   CPU time {used} x numpy   {each:.0f} microseconds a client")
    if options.with_flower:
        for name in ("local", "ray"):
            print(f"  {names['flower']} over engine {name}: {ratio(seconds['flower'], seconds[name])}")


if __name__ == "__main__":
    main()
