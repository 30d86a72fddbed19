"""One federation: select, broadcast, train, aggregate, apply, evaluate, record, round after round."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedloom.algorithms.base import Round
from fedloom.codec.wire import Broadcast, decode, encode, encoded_size
from fedloom.engines.group import Assignment, ClientReport
from fedloom.engines.local import LocalEngine
from fedloom.engines.memory import peak_memory
from fedloom.engines.sizing import make_groups
from fedloom.errors import RunError
from fedloom.evaluation.evaluator import Evaluator
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.selection.uniform import uniform
from fedloom.tracking.checkpoint import CheckpointFolder, Progress
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
    progress: Progress = field(init=False)

    def __post_init__(self) -> None:
        self.experiment = self.prepared.experiment
        self.algorithm = self.prepared.algorithm
        self.layout = self.prepared.binding.layout
        self.store = ClientStore(self.run_dir.path / "clients")
        self.engine = LocalEngine(self.prepared, self.store)
        self.checkpoints = CheckpointFolder(self.run_dir.path / "checkpoints", self.experiment.checkpoints)
        self.evaluator = Evaluator(self.prepared, self.store)

    def run(self) -> bool:
        """Run the rounds that are left; true when the federation is complete, false when it was asked to stop."""
        self.progress = self._begin()
        while not self.over:
            if self.stop_asked():
                return False
            self.round(self.progress.round + 1)
        if self.progress.round < self.experiment.federation.rounds:
            self.run_dir.event(
                self.progress.round, "early_stop", f"no improvement in {self.progress.stale} evaluations"
            )
        return True

    def round(self, number: int) -> None:
        """One round, from the selection of its cohort to its checkpoint."""
        started, progress, seed = time.perf_counter(), self.progress, self.experiment.seed
        federation = self.experiment.federation
        cohort = uniform(len(self.prepared.train), federation.clients_per_round, seed=seed, round=number)
        groups = make_groups(self.prepared, cohort.tolist(), self.engine.sizing.group_size)
        lr_factor = factor(federation.schedule, number - 1, federation.rounds)
        w, beside, bytes_each = self._broadcast(number)

        fold = self.algorithm.combine(self.layout)
        total, reports = fold.empty(), []
        for result in self.engine.run(Assignment(number, w, lr_factor, beside), groups):
            total = fold.merge(total, result.partial)
            reports += result.reports
        if all(report.status == "dropped" for report in reports):
            self._write_reports(number, reports)
            first = (reports[0].reason or "").partition("\n")[0]  # a traceback may follow
            raise RunError(f"every client of round {number} failed", why=first, fix="see clients.jsonl")
        facts = Round(number, total.count, len(self.prepared.train), self.layout)
        step, progress.server = self.algorithm.apply(progress.w, fold.finish(total), progress.server, facts)
        progress.w = progress.w + step
        if not torch.isfinite(progress.w).all():  # the losses were: it is the last step that went too far
            fix = "lower `local.lr` or set `local.clip`"
            raise RunError(f"the model is not finite after round {number}", why="training has diverged", fix=fix)
        progress.round = number

        record = self._evaluate(self._account(reports, bytes_each * len(reports), lr_factor))
        record["seconds"] = round(time.perf_counter() - started, 3)
        progress.seconds += record["seconds"]
        self._record(record, reports)

    def _begin(self) -> Progress:
        """Where the newest checkpoint left off, or round 0: the model as it is before any training."""
        self.checkpoints.clean()
        rounds = self.checkpoints.rounds()
        if rounds:
            progress = self.checkpoints.load(rounds[-1])
            self.run_dir.rewind(progress.positions)
            self.run_dir.event(progress.round, "resume", f"resumed after round {progress.round}")
            return progress
        w = self.prepared.initial.clone()
        self.progress = Progress(
            0, w, self.algorithm.server_state(w, self.layout), totals={"bytes_up": 0, "bytes_down": 0, "tokens": 0}
        )
        self.run_dir.rewind({})
        self.run_dir.event(
            0, "start", f"{len(self.prepared.train)} clients, {self.experiment.federation.rounds} rounds"
        )
        self._record(self._evaluate({"round": 0}), [])
        return self.progress

    def _broadcast(self, number: int) -> tuple[Tensor, dict[str, Tensor], int]:
        """The vector as the clients receive it, what goes beside it, and the bytes of one message."""
        w, beside = self.progress.w, self.algorithm.broadcast(self.progress.w, self.progress.server)
        if not self.algorithm.federated:
            return w, beside, 0
        received = self.algorithm.receives(self.layout, number)
        tensors = {"w": w if received is None else w[received]} | beside
        header = Broadcast(layout=self.layout.digest, round=number)
        if not self.experiment.engine.wire:
            return w, beside, encoded_size(header, tensors)
        message = encode(header, tensors)
        expected = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
        decoded = decode(message, Broadcast, expected)[1]
        got = decoded.pop("w")
        return got if received is None else w.masked_scatter(received, got), decoded, len(message)

    def _account(self, reports: Sequence[ClientReport], bytes_down: int, lr_factor: float) -> dict[str, Any]:
        """The round's record without its evaluation; the totals grow by it."""
        ok = [r for r in reports if r.status == "ok"]
        weight = sum(r.weight for r in ok)
        record: dict[str, Any] = {
            "round": self.progress.round,
            "clients": len(ok),
            "dropped": len(reports) - len(ok),
            "train_loss": sum(r.weight * (r.train_loss or 0.0) for r in ok) / weight,
            "bytes_up": sum(r.bytes_up for r in ok),
            "bytes_down": bytes_down,
            "tokens": sum(r.tokens for r in ok),
            "virtual_seconds": None,
            "peak_memory_bytes": peak_memory(self.prepared.binding.device),
            "lr": self.experiment.local.lr * lr_factor,
        }
        for name in self.progress.totals:
            self.progress.totals[name] += record[name]
        return record

    def _evaluate(self, record: dict[str, Any]) -> dict[str, Any]:
        """Judge the model when it is due, and remember the best; returns the record with its metrics."""
        progress, settings, number = self.progress, self.experiment.evaluation, record["round"]
        every = settings.clients_every if self.algorithm.personal else settings.every
        final = number == self.experiment.federation.rounds
        if number == 0 or final or (every and number % every == 0):
            record |= self.evaluator.held_out(progress)
        if number > 0 and settings.metric in record:
            self._watch(record[settings.metric])
        due = settings.clients_every and number % settings.clients_every == 0
        if number == 0 or due or self.over:
            self.run_dir.clients(self.evaluator.clients(progress))
        return record

    def _watch(self, value: float) -> None:
        """Compare the watched metric with the best so far."""
        progress, stopping = self.progress, self.experiment.federation.early_stopping
        sign = 1.0 if self.evaluator.lower_is_better(self.experiment.evaluation.metric) else -1.0
        margin = stopping.min_delta if stopping else 0.0
        progress.stale += 1
        if progress.best_value is None or sign * value < sign * progress.best_value - margin:
            progress.best_round, progress.best_value, progress.stale = progress.round, value, 0

    @property
    def over(self) -> bool:
        """Whether all rounds are done, or the watched metric has stalled."""
        stopping = self.experiment.federation.early_stopping
        stalled = stopping is not None and self.progress.stale >= stopping.patience
        return stalled or self.progress.round >= self.experiment.federation.rounds

    def _write_reports(self, number: int, reports: Sequence[ClientReport]) -> None:
        self.run_dir.clients([{"round": number} | vars(r) for r in reports])
        for report in reports:
            if report.status == "dropped":
                self.run_dir.event(number, "drop", f"{report.client}: {report.reason}")

    def _record(self, record: dict[str, Any], reports: Sequence[ClientReport]) -> None:
        """Write the round down, then its checkpoint: what a checkpoint holds has been recorded."""
        progress, keep = self.progress, self.experiment.checkpoints
        self._write_reports(progress.round, reports)
        self.run_dir.metrics(record)
        last = self.over or self.stop_asked()
        best = keep.keep_best and progress.best_round == progress.round
        if progress.round % keep.every == 0 or last or best:
            progress.positions = self.run_dir.positions()
            self.checkpoints.save(progress)
            self.store.keep_from = self.checkpoints.rounds()[0]
        for listener in self.listeners:
            listener(record)
