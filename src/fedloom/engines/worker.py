"""A process that trains groups for an engine: it holds the base model once, and folds before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedloom import algorithms
from fedloom.config.schema import Experiment
from fedloom.engines.group import Assignment, GroupResult, run_group
from fedloom.engines.layers import make_choice
from fedloom.engines.sizing import size_groups
from fedloom.local.prepare import Prepared
from fedloom.local.prepare import prepare as prepare_with
from fedloom.local.scores import with_proxy
from fedloom.local.store import ClientStore
from fedloom.local.train import make_trainer

__all__ = ["Worker", "prepare"]


def prepare(experiment: Experiment) -> Prepared:
    """An experiment made ready under its own algorithm.

    Raises FedloomError for whatever in data or model is not as the experiment says.
    """
    algorithm = algorithms.build(experiment.algorithm, experiment.base)
    prepared = with_proxy(prepare_with(experiment, algorithm)).with_algorithm(algorithm)
    make_choice(prepared)  # layers that the model has not are refused now
    return prepared


class Worker:
    """Runs groups of an experiment, one at a time; the clients' states are in a folder that all workers see."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self._prepared, self._store = prepared, store
        self._trainer = make_trainer(prepared, size_groups(prepared).grouped)

    @classmethod
    def open(cls, experiment: Experiment, folder: Path) -> Worker:
        """A worker that loads model and data itself."""
        return cls(prepare(experiment), ClientStore(folder))

    def run(self, work: Assignment, clients: Sequence[int], keep_from: int) -> GroupResult:
        """The result of a group; `keep_from` is the oldest round that the run may still be resumed from."""
        self._store.keep_from = keep_from
        return run_group(self._prepared, self._store, self._trainer, work, clients)

    def notes(self) -> list[str]:
        """What there is to know of how groups were trained, each once."""
        notes, self._trainer.notes = self._trainer.notes, []
        return notes
