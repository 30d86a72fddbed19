"""One federation: select, broadcast, train, aggregate, apply, evaluate, record, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedloom.aggregation.factors import residuals
from fedloom.algorithms.base import Round
from fedloom.devices.make import make_population
from fedloom.devices.population import Work
from fedloom.engines import attempts
from fedloom.engines.broadcast import broadcast, bytes_down_of
from fedloom.engines.collect import Collected
from fedloom.engines.group import Assignment
from fedloom.engines.layers import CHOSEN, GRADIENT, make_choice
from fedloom.engines.make import make_engine
from fedloom.engines.memory import peak_memory
from fedloom.engines.remote.link import ServerLink
from fedloom.engines.sizing import make_groups
from fedloom.engines.watch import watch, why_unwatched
from fedloom.engines.work import planned_work
from fedloom.errors import RunError
from fedloom.local.opening import PREVIOUS
from fedloom.local.prepare import Prepared
from fedloom.local.scores import with_proxy
from fedloom.local.store import ClientStore
from fedloom.selection import build as build_selector
from fedloom.selection.cohort import Cohort, Schedule
from fedloom.selection.schedule import make_schedule
from fedloom.tracking.checkpoint import CheckpointFolder, Progress
from fedloom.tracking.evaluations import Evaluations
from fedloom.tracking.rundir import RunDir
from fedloom.vector.schedule import factor

__all__ = ["Federation"]

Listener = Callable[[dict[str, Any]], None]
"""Told of every round's record as it is written."""


@dataclass
class Federation:
    """A federation on its way: what was prepared, where it is recorded, and the server's state."""

    prepared: Prepared
    run_dir: RunDir
    listeners: Sequence[Listener] = ()
    stop_asked: Callable[[], bool] = lambda: False
    link: ServerLink | None = None
    """What carries the messages of `engine: remote`."""
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.prepared = with_proxy(self.prepared)
        self.experiment, self.algorithm = self.prepared.experiment, self.prepared.algorithm
        self.layout = self.prepared.binding.layout
        self.layers = make_choice(self.prepared)
        self.store = ClientStore(self.run_dir.path / "clients")
        self.engine = make_engine(self.prepared, self.store, self.link)
        self.checkpoints = CheckpointFolder(self.run_dir.path / "checkpoints", self.experiment.checkpoints)
        self.evaluator = self.engine.judge
        self.evaluations = Evaluations(self.prepared, self.evaluator, self.run_dir)
        self.names = self.prepared.train.clients
        self.schedule = self._schedule()

    def _schedule(self) -> Schedule:
        """Who is asked in a round, and when it is over."""
        experiment, prepared = self.experiment, self.prepared
        sizes = prepared.train.sizes[prepared.seen]
        population = work = None
        if experiment.devices is not None:
            population = make_population(experiment.devices, sizes, seed=experiment.seed, base=experiment.base)
            w, server = prepared.initial, self.algorithm.server_state(prepared.initial, self.layout)
            work = planned_work(prepared, {"w": w} | self.algorithm.broadcast(w, server), 1, None)
        return make_schedule(
            experiment.federation,
            {int(k): self.names[k] for k in prepared.seen},
            self.algorithm.awaits() if self.algorithm.asynchronous else None,
            selector=build_selector(experiment.federation.selection, experiment.base),
            sizes=sizes,
            seed=experiment.seed,
            population=population,
            work=work,
        )

    def run(self) -> bool:
        """Run the rounds that are left; true when the federation is complete, false when it was asked to stop."""
        self.progress = self._begin()
        while not self.evaluations.over(self.progress):
            if self.stop_asked():
                return False
            self.round(self.progress.round + 1)
        if self.progress.round < self.experiment.federation.rounds:
            why = f"no improvement in {self.progress.stale} evaluations"
            self.run_dir.event(self.progress.round, "early_stop", why)
        return True

    def round(self, number: int) -> None:
        """One round, from the selection of its cohort to its checkpoint."""
        started, progress, earlier = time.perf_counter(), self.progress, self.progress.server
        asked = self.algorithm.asks(earlier, number)
        cohort = self.schedule.round(number, self._work(number), again=asked != number)
        found = self._train(cohort, asked - number)
        self._check_alive(cohort, found)
        facts = self._facts(cohort, found)
        progress.history = {version: self._sent(version) for version in sorted(cohort.needed)}  # nothing older
        aggregate = found.aggregate()
        if aggregate is not None:
            self._apply(aggregate, facts)
        progress.round = number
        self.prepared.binding.fold(residuals(progress.server))
        progress.server = self.layers.after(number, progress.w, progress.server, earlier, aggregate or {})

        by_layer, in_all = watch(self.prepared, number, progress.w, progress.server, found.factors)
        trained = self.layers.records(number, found.masks, earlier)
        self.run_dir.layers(by_layer + trained)
        in_all |= {"layers": sum(r["trained"] > 0 for r in trained)} if trained else {}
        record = self._account(cohort, found, facts.lr) | in_all | self.evaluations.judge(progress)
        record["seconds"] = round(time.perf_counter() - started, 3)
        progress.seconds += record["seconds"]
        if self.schedule.learns:
            sizes = self.prepared.train.sizes
            self.schedule.told(number, attempts.feedback(cohort, found.reports, self.names, sizes))
        self._record(record, attempts.client_records(cohort, found.reports, self.names))

    def _work(self, number: int) -> Work | None:
        """What the clients of a round are asked for, where that takes time on their devices."""
        if self.experiment.devices is None or self.algorithm.asynchronous:  # whose clients are asked in many rounds
            return None
        layers = self.layers.mask(self.progress.server, number)
        return planned_work(self.prepared, self._sent(number - 1), number, layers)

    def _train(self, cohort: Cohort, again: int) -> Collected:
        """Ask the cohort, version by version and group by group, and collect what it sends."""
        found = Collected(self.algorithm.combine(self.layout))
        for version, clients in cohort.started.items():
            work, size = self._assign(version, cohort, again)
            for part, theirs in self.layers.parts(work, clients):
                groups = make_groups(self.prepared, theirs, self.engine.sizing.group_size)
                for result in self.engine.run(part, groups):
                    found.add(part, result)
            found.bytes_down += bytes_down_of(self.prepared, self._sent(version), work.round, clients, size)
        for note in self.engine.notes():
            self.run_dir.event(cohort.number, "note", note)
        return found

    def _apply(self, aggregate: Mapping[str, Tensor], facts: Round) -> None:
        """The server's step."""
        progress, earlier = self.progress, self.progress.server
        step, server = self.algorithm.apply(progress.w, aggregate, earlier, facts)
        step, server = self.layers.hold(step, server, earlier, facts.trained)
        if getattr(self.experiment.local.gradient, "guidance", "none") != "none":  # clients are sent the last update
            server = {**server, PREVIOUS: self.algorithm.guides(step, server)}
        progress.w, progress.server = progress.w + step, server
        if not torch.isfinite(progress.w).all():  # the losses were: it is the last step that went too far
            fix = "lower `local.lr` or set `local.clip`"
            raise RunError(f"the model is not finite after round {facts.number}", why="training has diverged", fix=fix)

    def _begin(self) -> Progress:
        """Where the newest checkpoint left off, or round 0: the model as it is before any training."""
        self.checkpoints.clean()
        if rounds := self.checkpoints.rounds():
            progress = self.checkpoints.load(rounds[-1])
            self.run_dir.rewind(progress.positions)
            self.schedule.restore({name: value.numpy() for name, value in progress.selection.items()})
            self.run_dir.event(progress.round, "resume", f"resumed after round {progress.round}")
            self.prepared.binding.fold(residuals(progress.server))
            return progress
        w = self.prepared.initial.clone()
        server = self.algorithm.server_state(w, self.layout)
        self.prepared.binding.fold(residuals(server))
        server = self.layers.after(0, w, server, {}, {})
        self.progress = Progress(0, w, server, totals={"bytes_up": 0, "bytes_down": 0, "tokens": 0})
        self.run_dir.rewind({})
        what = f"{len(self.prepared.train)} clients, {self.experiment.federation.rounds} rounds"
        self.run_dir.event(0, "start", what)
        if why := why_unwatched(self.prepared):
            self.run_dir.event(0, "note", why)
        self._record({"round": 0} | self.evaluations.judge(self.progress), [])
        return self.progress

    def _assign(self, version: int, cohort: Cohort, again: int) -> tuple[Assignment, int]:
        """What the clients are asked that start from a version of the server's vector, and the bytes of sending one that.

        All that a client does is keyed by the round in which it is asked, whichever its update joins: it starts from a version
        at most once. Bytes down are counted when the update arrives.
        """
        federation, asked = self.experiment.federation, version + 1
        lr_factor = factor(federation.schedule, version, federation.rounds)
        received, size = broadcast(self.prepared, self._sent(version), asked)
        staleness, w = cohort.staleness(version), received.pop("w")
        discount = self.algorithm.discount(staleness)
        work = Assignment(asked, w, lr_factor, received, discount, staleness, asked + again, stretch=cohort.stretch)
        return work, size

    def _sent(self, version: int) -> dict[str, Tensor]:
        """What goes to the clients that start from a version: the vector `w`, and what the algorithm sends beside it."""
        progress = self.progress
        if version < progress.round:
            return progress.history[version]
        beside = {name: progress.server[name] for name in (CHOSEN, PREVIOUS) if name in progress.server}
        return {"w": progress.w} | self.algorithm.broadcast(progress.w, progress.server) | beside

    def _facts(self, cohort: Cohort, found: Collected) -> Round:
        """What the algorithm is told of a round, of which these updates came back."""
        versions, federation = list(cohort.started), self.experiment.federation
        start = self._sent(versions[0])["w"] if len(versions) == 1 and versions[0] < self.progress.round else None
        return Round(
            cohort.number, found.clients, len(self.prepared.seen), self.layout, cohort.mean_staleness, start,
            self.experiment, lr=self.experiment.local.lr * factor(federation.schedule, cohort.number - 1, federation.rounds),
            trained=found.trained, gradient=self.progress.server.get(GRADIENT),
        )  # fmt: skip

    def _check_alive(self, cohort: Cohort, found: Collected) -> None:
        """Stop when as many clients in a row have failed as are asked at a time."""
        progress = self.progress
        progress.missed = 0 if found.arrived else progress.missed + len(found.reports)
        if progress.missed >= self.schedule.in_flight:
            self._write_reports(progress.round + 1, attempts.client_records(cohort, found.reports, self.names))
            raise found.failure(progress.round + 1, progress.missed)

    def _account(self, cohort: Cohort, found: Collected, lr: float) -> dict[str, Any]:
        """The round's record without what is measured of the model; the totals grow by it."""
        record = {"round": cohort.number} | found.account() | {"virtual_seconds": cohort.seconds, "lr": lr}
        record |= attempts.account(cohort, found.reports, self.names)
        record["peak_memory_bytes"] = max(peak_memory(self.prepared.binding.device), found.peak_memory)
        if self.algorithm.asynchronous:
            record["staleness"] = cohort.mean_staleness
        for name in self.progress.totals:
            self.progress.totals[name] += record[name]
        return record

    def _write_reports(self, number: int, clients: Sequence[dict[str, Any]]) -> None:
        self.run_dir.clients([{"round": number} | record for record in clients])
        for record in clients:
            if record["status"] == "dropped":
                self.run_dir.event(number, "drop", f"{record['client']}: {record['reason']}")

    def _record(self, record: dict[str, Any], clients: Sequence[dict[str, Any]]) -> None:
        """Write the round down, then its checkpoint: what a checkpoint holds has been recorded."""
        progress, keep = self.progress, self.experiment.checkpoints
        self._write_reports(progress.round, clients)
        self.run_dir.metrics(record)
        due = progress.round % keep.every == 0 or (keep.keep_best and progress.best_round == progress.round)
        if due or self.evaluations.over(progress) or self.stop_asked():
            progress.positions = self.run_dir.positions()
            progress.selection = {name: torch.as_tensor(value) for name, value in self.schedule.state().items()}
            self.checkpoints.save(progress)
            self.store.keep_from = self.checkpoints.rounds()[0]
        for listener in self.listeners:
            listener(record)
