"""Parties that are gone for longer: rounds go on without a client, a run waits for its coordinator, who is back joins."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from drill_federation import COORDINATOR, LEASE, Drill

DEADLINE = 8.0
DROP = {"deadline": DEADLINE, "quorum": 2, "federation__on_failure": "drop"}
SOUTH = "south"

GONE: dict[str, Callable[[Drill], None]] = {
    "kill": lambda drill: drill.kill(SOUTH, back=None),
    "hang": lambda drill: drill.hang(SOUTH, None),
    "disconnect": lambda drill: drill.cut(SOUTH, seconds=None),
    "silence": lambda drill: drill.wires[SOUTH].hold(),
}
BACK: dict[str, Callable[[Drill], None]] = {
    "kill": lambda drill: drill.begin(SOUTH),
    "hang": lambda drill: os.kill(drill.processes[SOUTH].pid, signal.SIGCONT),
    "disconnect": lambda drill: drill.wires[SOUTH].mend(),
    "silence": lambda drill: drill.wires[SOUTH].mend(),
}
PHASES = ["broadcast", "train", "upload"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "phase"), [pytest.param(w, p, id=f"{w}-client-past-the-deadline-in-{p}") for w in GONE for p in PHASES]
)
def test_the_round_goes_on_and_who_is_back_joins_the_next(tmp_path: Path, what: str, phase: str) -> None:
    with Drill(tmp_path, **DROP) as drill:
        drill.at[SOUTH, phase, 2] = lambda: GONE[what](drill)
        drill.at[COORDINATOR, "commit", 2] = lambda: BACK[what](drill)
        drill.play()
        drill.check({(SOUTH, 2)}, {(SOUTH, 2): f"did not answer within {DEADLINE:g} seconds"})
        drill.end()


@pytest.mark.slow
def test_who_is_away_from_the_start_does_not_take_part(tmp_path: Path) -> None:
    with Drill(tmp_path, **DROP) as drill:
        drill.wires[SOUTH].cut()
        drill.revive = False
        drill.play()
        drill.check(without={SOUTH})
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["train", "commit"])
def test_two_coordinators_never_work_at_once(tmp_path: Path, phase: str) -> None:
    """One takes the seat of another that hangs; that one, awake again, stops; the run goes on when the seat is free."""
    with Drill(tmp_path) as drill:
        second = drill.add_coordinator()

        def usurp() -> None:
            drill.hang(COORDINATOR, None)
            drill.begin(second)

        drill.at[COORDINATOR, phase, 2] = usurp
        drill.start()
        drill.until(lambda: "ready at" in drill.said(second))
        os.kill(drill.processes[COORDINATOR].pid, signal.SIGCONT)
        drill.until(lambda: "another coordinator is at work" in drill.said(COORDINATOR))
        drill.kill(second, back=None)
        drill.play()
        assert (COORDINATOR, 1) in drill.exits, "who has lost its seat ends, to be started again"
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
def test_a_broker_that_is_away_for_long(tmp_path: Path) -> None:
    """Longer than any call waits: whoever gives up ends, is started again, and the run goes on."""
    with Drill(tmp_path, lease=0.5) as drill:
        drill.at[SOUTH, "train", 2] = lambda: drill.kill_broker(back=16 * 0.5)
        drill.play()
        drill.check()
        assert max(drill.trained.values()) <= 2
        drill.end()


@pytest.mark.slow
def test_a_broker_whose_disk_is_full_is_told_of_and_recovers(tmp_path: Path) -> None:
    """Uploads are refused while there is no room; the client says so, ends, and sends what it kept when there is."""
    with Drill(tmp_path) as drill:
        drill.at[SOUTH, "trained", 2] = lambda: drill.fill_uploads(SOUTH, 4 * LEASE)
        drill.play()
        assert "the broker does not store a message" in drill.said(SOUTH)
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()
