"""kill -9 and hangs of every party at every phase of a round: the run ends in the bytes of one that nothing happened to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from drill_federation import LEASE, Drill

QUICK = {"kill-client-during-upload"}
"""What is drilled whenever tests run; the others are slow together."""

CLIENT_PHASES = ["join", "broadcast", "train", "trained", "upload", "commit"]
"""An experiment is opened; the vector arrives; training begins, has ended; chunks leave; the broker holds the answer."""
COORDINATOR_PHASES = ["join", "broadcast", "train", "upload", "commit", "committed"]
"""Clients are asked what they hold; the vector is stored; they are asked to train; updates are read; a round is saved, is saved."""


def drills(*ids: str) -> list[object]:
    """Parameters of these names, the quick ones apart."""
    return [
        pytest.param(*each.split(" "), id=name(each), marks=[] if name(each) in QUICK else pytest.mark.slow)
        for each in ids
    ]


def name(each: str) -> str:
    what, who, phase = each.split(" ")
    return f"{what}-{who}-during-{phase}"


def round_of(phase: str) -> int:
    """When a phase is disturbed: in the middle of the run, or before it."""
    return 0 if phase == "join" else 2


def most_trainings(what: str, who: str, phase: str) -> int:
    """How often the client that was hit may have trained the round: twice only when it was killed with nothing to show for it."""
    return 2 if (what, who) == ("kill", "client") and phase in ("train", "trained") else 1


def disturb(drill: Drill, what: str, who: str, moment_of: str) -> Callable[[], None]:
    """What happens to a party."""
    if who == "broker":
        return drill.kill_broker if what == "kill" else lambda: drill.hang_broker(2.5 * LEASE)
    return lambda: drill.kill(moment_of) if what == "kill" else drill.hang(moment_of, 2.5 * LEASE)


@pytest.mark.parametrize(
    ("what", "who", "phase"),
    drills(
        *(f"{what} client {phase}" for what in ("kill", "hang") for phase in CLIENT_PHASES),
        *(f"{what} coordinator {phase}" for what in ("kill", "hang") for phase in COORDINATOR_PHASES),
        *(f"{what} broker {phase}" for what in ("kill", "hang") for phase in CLIENT_PHASES if phase != "trained"),
    ),
)
def test_who_is_killed_or_hangs_goes_on_where_it_was(tmp_path: Path, what: str, who: str, phase: str) -> None:
    """Clients come back before the deadline, so that nobody is left out; what was trained is not trained again."""
    with Drill(tmp_path) as drill:
        at = "coordinator" if who == "coordinator" else "south"
        drill.at[at, phase, round_of(phase)] = disturb(drill, what, who, at)
        drill.play()
        assert drill.reached == [(at, phase, round_of(phase))]
        drill.check()
        most = most_trainings(what, who, phase)
        assert drill.trained == {
            (name, round): most if (name, round) == ("south", 2) else 1
            for name in ("north", "south", "west")
            for round in (1, 2, 3)
        } or (most == 2 and set(drill.trained.values()) == {1})
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("phase", COORDINATOR_PHASES)
def test_coordinator_and_its_broker_die_together(tmp_path: Path, phase: str) -> None:
    """As with `fedloom serve`: the broker ends with the coordinator, and begins with the next one."""
    with Drill(tmp_path, own_broker=True) as drill:
        drill.at["coordinator", phase, round_of(phase)] = lambda: drill.kill("coordinator")
        drill.play()
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["broadcast", "train", "upload", "commit"])
def test_all_die_at_once(tmp_path: Path, phase: str) -> None:
    with Drill(tmp_path) as drill:

        def everyone() -> None:
            drill.kill_broker()
            for each in ("coordinator", "north", "south", "west"):
                drill.kill(each, back=0.4)

        drill.at["south", phase, 2] = everyone
        drill.play()
        drill.check()
        assert max(drill.trained.values()) <= 2
        assert sum(drill.trained.values()) <= 12, "only what was under way is trained again"
        drill.end()
