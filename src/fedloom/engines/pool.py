"""Groups run in several processes of this machine, longest first; their results come back in the order of the groups.

Where processes can be forked, one of them, the template, loads model and data and computes nothing; every worker is a fork of it,
which shares its memory until it writes there, and one that has died is there again at once. A GPU cannot be shared so: there
every worker loads the experiment itself, worker i on GPU i modulo their number.

A worker that dies, whatever of, is replaced and its group run again: a client's state is kept by round, so that the outcome is the
same bytes. All processes end when this one does, however that ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedloom.config.engine import LocalEngine as Options
from fedloom.engines.group import Assignment, GroupResult
from fedloom.engines.sizing import Sizing, size_groups
from fedloom.engines.worker import as_arrays, as_tensors, error_of, identity
from fedloom.errors import FedloomError, RunError
from fedloom.evaluation.evaluator import Evaluator, Judge
from fedloom.local.batches import steps_of
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["PoolEngine", "count_workers"]

_LIVES = 3
"""Processes that a group may cost, or that may die while they load."""

_CPUS = Path("/proc/cpuinfo")

Products = Mapping[str, tuple[Tensor, Tensor]]


def count_workers(options: Options, device: torch.device) -> int:
    """The number of processes that train; `auto` is one a GPU, or two a CPU socket but no more than there are cores."""
    if options.workers != "auto":
        return options.workers
    if device.type == "cuda":
        return torch.cuda.device_count()
    return max(1, min(2 * _sockets(), len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1))


def _sockets() -> int:
    """The CPU sockets of this machine, one where it does not tell."""
    lines = _CPUS.read_text().splitlines() if _CPUS.exists() else []
    return max(1, len({line for line in lines if line.startswith("physical id")}))


def _can_fork(device: torch.device) -> bool:
    """Whether a process that has loaded everything can be forked: never one that has used a GPU, and safely on Linux."""
    return device.type == "cpu" and sys.platform == "linux"


class PoolEngine:
    """Several processes of this machine; this one keeps the round loop and judges the model."""

    def __init__(self, prepared: Prepared, store: ClientStore, workers: int) -> None:
        self.sizing: Sizing = size_groups(prepared)
        self.judge: Judge = Evaluator(prepared, store)
        self._prepared, self._store = prepared, store
        engine = prepared.experiment.engine
        self._threads = engine.threads or max(1, torch.get_num_threads() // workers)
        self._forks = _can_fork(prepared.binding.device)
        self._template: _Process | None = None
        self._workers: list[_Process | None] = [None] * workers
        self._notes: list[str] = []
        self._said: set[str] = set()
        if engine.threads is None:
            what = f"each of {workers} workers computes with {self._threads} of torch's threads"
            self._note(f"{what}; set engine.threads for the same bytes with any number of workers")
        if self._forks:  # what is started now loads while this process judges the model before any training
            self._template = self._start(None)
        else:
            self._workers = [self._start(slot) for slot in range(workers)]

    def notes(self) -> list[str]:
        """What there is to know of how groups are trained, each once; also which workers have died."""
        notes, self._notes = self._notes, []
        return notes

    def close(self, finished: bool = False) -> None:
        """End every process that was started."""
        for slot in range(len(self._workers)):
            self._end(slot)
        if self._template is not None:
            self._template.end()
            self._template = None

    def run(self, work: Assignment, groups: Sequence[Sequence[int]]) -> Iterator[GroupResult]:
        """The results of the groups, in the order given.

        Raises the error of the first group, in that order, that has one; RunError where a group costs three workers their lives,
        or no worker can be started. Workers that are at work when the caller goes away are ended.
        """
        if len(groups) < min(len(self._workers), sum(map(len, groups))):
            what = f"{len(self._workers)} workers, but groups for {len(groups)} of them"
            self._note(f"{what}: engine.group_size, now {self.sizing.group_size}, makes more groups when it is lower")
        jobs = _Jobs(work, groups, sorted(range(len(groups)), key=lambda i: -self._cost(groups[i])))
        try:
            self._hand_out(jobs)
            for wanted in range(len(groups)):
                while wanted not in jobs.done:
                    self._take(jobs)
                    self._hand_out(jobs)
                result = jobs.done.pop(wanted)
                if isinstance(result, FedloomError):
                    raise result
                yield result
        finally:
            for slot, worker in enumerate(self._workers):
                if worker is not None and worker.group is not None:
                    self._end(slot)

    def _cost(self, clients: Sequence[int]) -> float:
        """What a group takes, in tokens of its batches: steps x mean length, over its clients."""
        train, local, lengths = self._prepared.train, self._prepared.experiment.local, self._prepared.table.lengths
        rows = [train.rows(k) for k in clients]
        return sum(steps_of(len(own), local, self._prepared.step_scale) * float(lengths[own].mean()) for own in rows)

    def _hand_out(self, jobs: _Jobs) -> None:
        """Give the longest groups that wait to the workers that are idle."""
        products = self._prepared.binding.folded
        for slot in range(len(self._workers)):
            worker = self._workers[slot]
            if not jobs.waiting or (worker is not None and worker.group is not None):
                continue
            if worker is None or not worker.ready:
                worker = self._workers[slot] = self._ready(slot)
            worker.group = jobs.waiting.pop(0)
            try:
                worker.give(jobs.work, products, jobs.groups[worker.group], self._store.keep_from)
            except OSError:
                self._mourn(slot, jobs)

    def _take(self, jobs: _Jobs) -> None:
        """Wait until a worker is done, or dies, and take down what has come of its group."""
        busy = {w.connection: slot for slot, w in enumerate(self._workers) if w is not None and w.group is not None}
        for connection in wait(list(busy)):
            slot = busy[connection]  # type: ignore[index]
            worker = self._workers[slot]
            assert worker is not None and worker.group is not None
            try:
                result, notes = worker.answer()
            except FedloomError as error:
                jobs.fail(worker.group, error)
            except (EOFError, OSError):
                self._mourn(slot, jobs)
                continue
            else:
                jobs.done[worker.group] = as_tensors(result)
                for note in notes:
                    self._note(note)
            worker.group = None

    def _mourn(self, slot: int, jobs: _Jobs) -> None:
        """A worker has died: its group waits for another, unless it has cost too many."""
        worker = self._workers[slot]
        assert worker is not None and worker.group is not None
        group, how = worker.group, self._end(slot)
        jobs.deaths[group] += 1
        names = ", ".join(repr(self._prepared.train.clients[k]) for k in jobs.groups[group])
        if jobs.deaths[group] < _LIVES:
            jobs.waiting.insert(0, group)
            self._notes.append(
                f"a worker died ({how}) in round {jobs.work.round}; its clients are trained again: {names}"
            )
            return
        what = f"{_LIVES} workers died of the same clients in round {jobs.work.round}: {names}"
        fix = "lower engine.workers or engine.group_size if memory ran out; data.where can leave clients out"
        jobs.fail(group, RunError(what, where="engine", why=f"the last {how}", fix=fix))

    def _ready(self, slot: int) -> _Process:
        """A worker that has loaded the experiment."""
        how = ""
        for _ in range(_LIVES):
            try:
                if self._forks:
                    self._template = self._template or self._start(None)
                    self._check(self._template)
                    return self._template.fork(self._threads)
                worker = self._workers[slot] = self._workers[slot] or self._start(slot)
                self._check(worker)
                return worker
            except (EOFError, OSError) as error:
                how = self._lose(slot) or str(error)
            except FedloomError:
                self._lose(slot)
                raise
        what = f"{_LIVES} worker processes died while they loaded the experiment"
        fix = "lower engine.workers if memory ran out, or set it to 1"
        raise RunError(what, where="engine.workers", why=f"the last {how}", fix=fix)

    def _lose(self, slot: int) -> str:
        """End the process that should have become a worker, or the template; how it ended."""
        if not self._forks:
            return self._end(slot)
        lost, self._template = self._template, None
        return "" if lost is None else lost.end()

    def _start(self, slot: int | None) -> _Process:
        """A process of its own that begins to load the experiment."""
        experiment = self._prepared.experiment
        engine = experiment.engine.model_copy(update={"threads": 1 if slot is None else self._threads})
        gpu = None
        if slot is not None and self._prepared.binding.device.type == "cuda":
            gpu = slot % torch.cuda.device_count()
        process = _Process.start()
        with suppress(OSError):  # if it has died already, that is found when it is waited for
            process.connection.send(("open", experiment.model_copy(update={"engine": engine}), self._store.folder, gpu))
        return process

    def _check(self, process: _Process) -> None:
        """Wait until a process has loaded what this one has.

        Raises RunError when it is something else.
        """
        if process.ready:
            return
        theirs, ours = process.answer(), identity(self._prepared)
        other = [name for name in ours if theirs[name] != ours[name]]
        if other:
            what = f"a worker process has loaded another {other[0]} than the run began with"
            raise RunError(what, where="engine.workers", why="files have changed since", fix="begin a new run")
        process.ready = True

    def _end(self, slot: int) -> str:
        worker, self._workers[slot] = self._workers[slot], None
        return "" if worker is None else worker.end()

    def _note(self, text: str) -> None:
        """Say something once."""
        if text not in self._said:
            self._said.add(text)
            self._notes.append(text)


@dataclass
class _Jobs:
    """The groups of one call: those that wait, longest first, and what has come of the others."""

    work: Assignment
    groups: Sequence[Sequence[int]]
    waiting: list[int]
    done: dict[int, GroupResult | FedloomError] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)

    def fail(self, group: int, error: FedloomError) -> None:
        """The run ends at this group; those after it need not begin."""
        self.done[group] = error
        self.waiting = [i for i in self.waiting if i < group]


@dataclass(eq=False)
class _Process:
    """A process that serves a connection, and ends with it; `parent` can tell how it has ended."""

    connection: Connection
    pid: int
    parent: subprocess.Popen[bytes] | _Process
    ready: bool = False
    group: int | None = None
    """The number of the group it is training."""
    _work: Assignment | None = None
    _products: Products | None = None

    @classmethod
    def start(cls) -> _Process:
        """A new interpreter, away from the signals of this one's terminal."""
        ours, theirs = Pipe()
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        code = f"from fedloom.engines.worker import serve; serve({theirs.fileno()})"
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], process_group=0,
            )  # fmt: skip
        return cls(ours, child.pid, child)

    def fork(self, threads: int) -> _Process:
        """A process that holds what this one holds."""
        ours, theirs = Pipe()
        with theirs:
            self.connection.send(("fork", threads))
            send_handle(self.connection, theirs.fileno(), self.pid)
            return _Process(ours, self.answer(), self, ready=True)

    def give(self, work: Assignment, products: Products, clients: Sequence[int], keep_from: int) -> None:
        """Ask for a group's result; what it has been given before is not sent again."""
        news = (
            None if work is self._work else as_arrays(work),
            None if products is self._products else as_arrays(products),
        )
        self.connection.send(("run", *news, list(clients), keep_from))
        self._work, self._products = work, products

    def answer(self) -> Any:
        """Wait for the answer; raises the error it may be, and EOFError or OSError when the process is gone."""
        kind, *facts = self.connection.recv()
        if kind == "done":
            return facts[0]
        raise error_of(*facts)

    def end(self) -> str:
        """End it, and wait until it has ended; how it did, in words."""
        self.connection.close()
        if isinstance(self.parent, subprocess.Popen):
            self.parent.kill()
            return _in_words(self.parent.wait())
        try:
            self.parent.connection.send(("end", self.pid))
            return _in_words(self.parent.answer())
        except (EOFError, OSError, FedloomError):
            return "ended with its parent"


def _in_words(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
