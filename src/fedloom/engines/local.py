"""Groups run in this process, one after the other, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedloom.engines.group import Assignment, GroupResult
from fedloom.engines.sizing import Sizing, size_groups
from fedloom.engines.worker import Worker
from fedloom.evaluation.evaluator import Evaluator, Judge
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["LocalEngine"]


class LocalEngine:
    """The simplest engine: this process."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self.sizing: Sizing = size_groups(prepared)
        self._store, self._worker = store, Worker(prepared, store)
        self.judge: Judge = Evaluator(prepared, store)

    def notes(self) -> list[str]:
        """What there is to know of how groups are trained, each once."""
        return self._worker.notes()

    def close(self, finished: bool = False) -> None:
        """Nothing was started."""

    def run(self, work: Assignment, groups: Sequence[Sequence[int]]) -> Iterator[GroupResult]:
        """The results of the groups, in the order given."""
        for group in groups:
            yield self._worker.run(work, group, self._store.keep_from)
