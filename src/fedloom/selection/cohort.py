"""Who makes a round: the clients whose updates the server waits for, and the version of its vector that each started from.

Version t is the server's vector after t rounds; version 0 is the model before any training. Round t makes version t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fedloom.devices.population import Work
from fedloom.selection.clock import Attempts
from fedloom.selection.pool import Feedback, State

__all__ = ["Cohort", "Schedule"]


@dataclass(frozen=True)
class Cohort:
    """The clients of a round."""

    number: int
    started: Mapping[int, Sequence[int]]
    """The clients by the version they started from, oldest first; a version's clients ascending."""
    needed: frozenset[int] = frozenset()
    """The older versions that a later round's clients have started from already."""
    seconds: float | None = None
    """When the round ends on the virtual clock, if there is one."""
    stretch: Mapping[int, int] = field(default_factory=dict)
    """The clients that the selector has take more steps than usual, and how many times as many."""
    attempts: Attempts | None = None
    """Where devices are known: what became of all that were asked and are not under way any more."""

    def staleness(self, version: int) -> int:
        """tau: the versions that the server has made since a client started from this one."""
        return self.number - 1 - version

    @property
    def mean_staleness(self) -> float:
        """The mean of tau over the clients."""
        counts = {self.staleness(version): len(clients) for version, clients in self.started.items()}
        return sum(tau * count for tau, count in counts.items()) / max(sum(counts.values()), 1)


class Schedule(Protocol):
    """The cohorts of a run, round after round. Who is in a round is known before anything is trained for it."""

    in_flight: int
    """Clients that are asked at a time."""
    learns: bool
    """Whether `told` plays a part."""

    def round(self, number: int, work: Work | None = None, again: bool = False) -> Cohort:
        """The cohort of a round, counted from 1, whose clients are asked for this work; `again`: the last round's once more.

        Raises RunError where there is nobody to ask any more.
        """
        ...

    def told(self, number: int, feedback: Feedback) -> None:
        """What came of the clients of a round."""
        ...

    def state(self) -> State:
        """What must survive for the rounds after this to be the same."""
        ...

    def restore(self, state: State) -> None:
        """Go on from that."""
        ...
