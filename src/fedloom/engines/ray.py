"""Groups run on a Ray cluster: Ray places the workers and moves the messages; results come back in the order of the groups.

Every worker is an actor that has loaded the experiment by itself and folds a group before it answers. What all of a round's
groups are given is put into Ray's object store once. The states that clients keep travel with their group and come back with its
result, so that they lie on this machine's disk alone and no file system need be shared.

A worker that is lost, with its node or alone, is replaced, and its groups are run again: what a group computes depends on what it
is given and on nothing else, so that the outcome is the same bytes. Ray is imported when the engine is made, never before.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fedloom.config.engine import RayEngine as Options
from fedloom.engines.group import Assignment, GroupResult
from fedloom.engines.ray_cluster import connect, count_workers, first_line, import_ray
from fedloom.engines.ray_worker import Actor, Answer, Landed, Shared, State, facts, tensors_as_arrays
from fedloom.engines.sizing import Sizing, size_groups
from fedloom.engines.worker import error_of
from fedloom.errors import RunError, UsageError
from fedloom.evaluation.evaluator import Evaluator, Judge
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["RayEngine"]

_LIVES = 3
"""Workers that a group may cost, or that may be lost in a row while they load."""
_ROOM = 600.0
"""Seconds in which a cluster must have found room for a worker, and started its process, when there is none."""
_WORK, _BYTES = 0.05, 64 << 20
"""Seconds of work, and bytes of results, up to which one message holds several groups."""
_NAMED = 64
"""Clients that a message names."""


class RayEngine:
    """Workers on a Ray cluster, started here or running already; this process keeps the round loop and judges the model.

    In a process that is connected to Ray already, that cluster is used, and left as it was.
    """

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        options = prepared.experiment.engine
        assert isinstance(options, Options)
        self.sizing: Sizing = size_groups(prepared)
        self.judge: Judge = Evaluator(prepared, store)
        self._prepared, self._store = prepared, store
        self._keeps = prepared.algorithm.private(prepared.binding.layout) is not None
        self._keeps |= prepared.experiment.local.optimizer_state == "keep"
        self._notes: list[str] = []
        self._said: set[str] = set()
        self._shared: tuple[Shared, Any] | None = None
        self._seconds = _WORK
        self._ray = import_ray(options)
        self._disconnect = connect(self._ray, options)
        try:
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            count = count_workers(options, nodes)
            tensors_as_arrays(self._ray)
            self._crew = _Crew(self._ray, prepared, options, count)
        except BaseException:
            self._disconnect()
            raise
        if options.threads is None:
            self._note(
                f"each of {count} workers computes with as many of torch's threads as Ray gives it, {max(1, int(options.cpus))} "
                "where OMP_NUM_THREADS says nothing else; set engine.threads for the same bytes as on another engine"
            )

    def notes(self) -> list[str]:
        """What there is to know of how groups are trained, each once; also which workers were lost."""
        notes, self._notes = self._notes, []
        return notes

    def close(self, finished: bool = False) -> None:
        """End the workers, and Ray where it was started here."""
        self._shared = None
        if self._ray.is_initialized():
            self._crew.dismiss()
            self._ray.util.deregister_serializer(Tensor)
        self._disconnect()

    def run(self, work: Assignment, groups: Sequence[Sequence[int]]) -> Iterator[GroupResult]:
        """The results of the groups, in the order given, which is longest first.

        Raises the error of the first group, in that order, that has one; RunError where a group costs three workers their lives,
        or no worker is left; UsageError where the cluster has no room for any.
        """
        if len(groups) < min(self._crew.size, sum(map(len, groups))):
            what = f"{self._crew.size} workers, but groups for {len(groups)} of them"
            self._note(f"{what}: engine.group_size, now {self.sizing.group_size}, makes more groups when it is lower")
        keeps = self._keeps or bool(self._prepared.algorithm.client_state(work.w, self._prepared.binding.layout))
        rest = replace(work, w=work.w[:0], server={})
        jobs = _Jobs(work, groups, keeps, self._share(work), rest if work.layers is None else self._ray.put(rest))
        self._crew.begin()
        for wanted in range(len(groups)):
            while (landed := self._fetch(jobs, wanted)) is None:
                self._hand_out(jobs)
                self._take(jobs)
            for client, round, state in landed.kept:
                self._store.save(client, round, state)
            self._hand_out(jobs)
            yield landed.result

    def _share(self, work: Assignment) -> Any:
        """What all groups of a round are given, put into the object store when it is something new."""
        now: Shared = (work.w, work.server, self._prepared.binding.folded)
        if self._shared is None or any(a is not b for a, b in zip(self._shared[0], now, strict=True)):
            self._shared = (now, self._ray.put(now))
        return self._shared[1]

    def _hand_out(self, jobs: _Jobs) -> None:
        """Give the longest groups that wait to the workers; twice to each while there are plenty, so that none waits for more."""
        crew = self._crew
        while jobs.waiting and crew.ready:
            member = min(crew.ready, key=lambda m: m.tasks)
            plenty = len(jobs.waiting) > crew.size and not jobs.deaths
            if member.tasks >= (2 if plenty else 1):
                return
            numbers = [heapq.heappop(jobs.waiting) for _ in range(self._at_once(jobs) if plenty else 1)]
            groups = [(list(jobs.groups[i]), self._states(jobs, jobs.groups[i])) for i in numbers]
            news = [] if member.shared is jobs.shared else [jobs.shared]
            answer, body = member.actor.run.options(num_returns=2).remote(news, jobs.rest, groups)
            member.tasks, member.shared = member.tasks + 1, jobs.shared
            jobs.flying[answer] = (numbers, member, body)

    def _at_once(self, jobs: _Jobs) -> int:
        """How many groups go into a message: more than one only where that is little work, less than a message is."""
        size = 8 * self._prepared.binding.layout.n
        most = min(_WORK / self._seconds, _BYTES / size, len(jobs.waiting) / (2 * self._crew.size))
        return max(1, int(most))

    def _states(self, jobs: _Jobs, clients: Sequence[int]) -> dict[str, State]:
        """What these clients have kept, by name."""
        names = [self._prepared.train.clients[k] for k in clients] if jobs.keeps else []
        found = {name: self._store.load(name, jobs.work.round) for name in names}
        return {name: state for name, state in found.items() if state is not None}

    def _take(self, jobs: _Jobs) -> None:
        """Wait until a group is done or lost, or a worker comes a step nearer."""
        crew = self._crew
        crew.check_coming(bool(jobs.flying), lambda: self._names(jobs, jobs.waiting))
        ready, _ = self._ray.wait([*jobs.flying, *crew.coming], timeout=5.0)
        for ref in ready:
            if ref in crew.coming:
                crew.come(ref)
                continue
            numbers, member, body = jobs.flying.pop(ref)
            member.tasks -= 1
            answer = _get(self._ray, ref)
            if isinstance(answer, Exception):
                self._mourn(jobs, member, numbers, answer)
                continue
            jobs.take(numbers, member, answer, body)
            self._seconds = answer.seconds / len(numbers)
            for note in answer.notes:
                self._note(note)

    def _fetch(self, jobs: _Jobs, wanted: int) -> Landed | None:
        """A group's result, and what its clients keep; None while there is none, or when it was lost with its node."""
        if wanted in jobs.done:
            numbers, member, body = jobs.done[wanted]
            for number in numbers:
                del jobs.done[number]
            landed = _get(self._ray, body) if numbers else []
            if isinstance(landed, Exception):
                self._mourn(jobs, member, numbers, landed)
            else:
                jobs.landed.update(zip(numbers, landed, strict=True))
        if wanted in jobs.landed:
            return jobs.landed.pop(wanted)
        if wanted in jobs.failed:
            raise error_of(*jobs.failed[wanted])
        return None

    def _mourn(self, jobs: _Jobs, member: _Member, numbers: Sequence[int], error: Exception) -> None:
        """Groups were lost with their worker: they wait for another, unless they have cost too many."""
        self._crew.lose(member)
        names, how = self._names(jobs, numbers), first_line(error)
        for number in numbers:
            jobs.deaths[number] += 1
            heapq.heappush(jobs.waiting, number)
            if jobs.deaths[number] >= _LIVES:
                what = f"{_LIVES} workers were lost with the same clients in round {jobs.work.round}: {names}"
                fix = "lower engine.group_size, or raise engine.cpus so that fewer workers share a node's memory"
                raise RunError(what, where="engine", why=f"the last: {how}", fix=fix)
        self._notes.append(
            f"a worker was lost in round {jobs.work.round} ({how}); its clients are trained again: {names}"
        )

    def _names(self, jobs: _Jobs, numbers: Sequence[int]) -> str:
        names = [repr(self._prepared.train.clients[k]) for i in sorted(numbers) for k in jobs.groups[i]]
        return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

    def _note(self, text: str) -> None:
        """Say something once."""
        if text not in self._said:
            self._said.add(text)
            self._notes.append(text)


@dataclass
class _Jobs:
    """The groups of one call: those that wait, those under way, and what has come of the others; all by number."""

    work: Assignment
    groups: Sequence[Sequence[int]]
    keeps: bool
    """Whether clients keep anything."""
    shared: Any
    """In the object store: what all groups of the round are given."""
    rest: Any
    """The assignment without that; there too where it is large."""
    waiting: list[int] = field(init=False)
    flying: dict[Any, tuple[list[int], _Member, Any]] = field(default_factory=dict)
    """By the answer to come: the groups, who has them, and their results to come."""
    done: dict[int, tuple[list[int], _Member, Any]] = field(default_factory=dict)
    """The same of those that are done: results that wait for their turn stay in the object store."""
    landed: dict[int, Landed] = field(default_factory=dict)
    failed: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    deaths: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.waiting = list(range(len(self.groups)))  # a heap, as it is

    def take(self, numbers: Sequence[int], member: _Member, answer: Answer, body: Any) -> None:
        """Note what a worker says of these groups."""
        good = list(numbers[: answer.results])
        self.done.update((number, (good, member, body)) for number in good)
        if answer.failed is not None:  # the run ends at this group; those after it need not begin
            failed = numbers[answer.results]
            self.failed[failed] = answer.failed[1:]
            self.waiting = [i for i in self.waiting if i < failed]


@dataclass(eq=False)
class _Member:
    """A worker that has loaded the experiment, the tasks it has been given, and what it was last told that all are."""

    actor: Any
    tasks: int = 0
    shared: Any = None


class _Crew:
    """The workers: those that are ready, and those that are on their way."""

    def __init__(self, ray: Any, prepared: Prepared, options: Options, size: int) -> None:
        self.size = size
        self.ready: list[_Member] = []
        self.coming: dict[Any, tuple[Any, float | None]] = {}
        """By what is awaited: the actor, and since when it waits for room; None once it has some and is loading."""
        self._ray, self._prepared, self._lost = ray, prepared, 0
        self._experiment = ray.put(prepared.experiment)
        self._class = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, scheduling_strategy="SPREAD")(Actor)
        for _ in range(size):
            self._hire()

    def begin(self) -> None:
        """Nobody has a group: one that is still at work on what nobody waits for any more goes on when it is done."""
        for member in self.ready:
            member.tasks = 0

    def dismiss(self) -> None:
        """End all workers at once."""
        for actor in [*(m.actor for m in self.ready), *(actor for actor, _ in self.coming.values())]:
            self._ray.kill(actor)
        self.ready, self.coming = [], {}

    def lose(self, member: _Member) -> None:
        """A worker is gone: another takes its place."""
        if member in self.ready:  # it may have had two groups
            self.ready.remove(member)
            self._ray.kill(member.actor)  # it may be there still, cut off
            self._hire()

    def come(self, ref: Any) -> None:
        """A worker has found room and begins to load, or has loaded and is ready."""
        actor, waited = self.coming.pop(ref)
        value = _get(self._ray, ref)
        if isinstance(value, Exception):
            self._lost += 1
            if self._lost >= _LIVES:
                what = f"{_LIVES} workers were lost before they had loaded the experiment"
                fix = "fedloom and what the experiment names must be on every node, and its model fit into its memory"
                raise RunError(what, where="engine", why=f"the last: {first_line(value)}", fix=fix)
            self._hire()
        elif waited is not None:
            self.coming[actor.open.remote(self._experiment)] = (actor, None)
        else:
            kind, *said = value
            if kind == "failed":
                raise error_of(*said)
            self._check(*said)
            self._lost = 0
            self.ready.append(_Member(actor))

    def check_coming(self, at_work: bool, left: Callable[[], str]) -> None:
        """Give up when nobody is at work, and the cluster has long had no room for anybody.

        Raises UsageError, which names the clients that are left.
        """
        waits = [since for _, since in self.coming.values()]
        if at_work or self.ready or None in waits:
            return
        if time.monotonic() - max(since for since in waits if since is not None) > _ROOM:
            what = f"for {_ROOM:.0f} seconds the cluster has had no room for a worker; clients that wait: {left()}"
            fix = "free or add nodes, or lower what a worker reserves (engine.cpus, engine.gpus); `fedloom resume` goes on"
            raise UsageError(what, where="engine", fix=fix)

    def _hire(self) -> None:
        actor = self._class.remote()
        self.coming[actor.place.remote()] = (actor, time.monotonic())

    def _check(self, theirs: Mapping[str, str], where: str) -> None:
        """Refuse a worker that holds something else than this process does."""
        for name, ours in facts(self._prepared).items():
            if theirs[name] != ours:
                what = f"a worker on {where} has another {name} than this process"
                fix = "install the same packages on every node, and give each the same files"
                raise RunError(what, where="engine", why=f"it has {theirs[name]}, this process {ours}", fix=fix)


def _get(ray: Any, ref: Any) -> Any:
    """A value, or Ray's error where it was lost with a worker or a node.

    Raises RunError for an error that should have been told.
    """
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise RunError(f"a worker failed: {first_line(error.cause or error)}", where="engine") from error
    except ray.exceptions.RayError as error:
        return error
