"""What the round loop asks of an engine.

What a client computes is a function of (assignment, its data, its state, its random streams); an engine decides where that runs.
Groups are made by the caller and folded within themselves; results come back in the order of the groups, whatever the order in
which they end, so that the sum has the same bits on every engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fedloom.engines.group import Assignment, GroupResult
from fedloom.engines.sizing import Sizing
from fedloom.evaluation.evaluator import Judge

__all__ = ["Engine"]


class Engine(Protocol):
    """Where groups run."""

    sizing: Sizing
    """How many clients make a group, and how it is trained."""
    judge: Judge

    def run(self, work: Assignment, groups: Sequence[Sequence[int]]) -> Iterator[GroupResult]:
        """The results of the groups, in the order given.

        Raises ClientError where a client fails and the policy is to stop, RunError where groups can no longer be run.
        """

    def notes(self) -> list[str]:
        """What there is to know of how groups are trained, each once."""

    def close(self, finished: bool = False) -> None:
        """End what was started; nothing is left running. `finished`: the run is complete, and will not be resumed."""
