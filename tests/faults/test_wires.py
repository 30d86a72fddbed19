"""Wires that are cut, fall silent, are slow or damage what they carry, at every phase: nobody trains twice, same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from drill_federation import LEASE, Drill

QUICK = {"disconnect-client-during-upload"}
PHASES = ["join", "broadcast", "train", "upload", "commit"]

WIRES = [
    *(f"disconnect {who} {phase}" for who in ("client", "coordinator") for phase in PHASES),
    *(f"silence {who} {phase}" for who in ("client", "coordinator") for phase in ("broadcast", "train", "upload")),
    *(f"slow {who} {phase}" for who in ("client", "coordinator") for phase in ("join", "broadcast", "upload")),
    *(f"flip {who} {phase}" for who in ("client", "coordinator") for phase in ("join", "broadcast", "train", "upload")),
    *(
        f"truncate {who} {phase}"
        for who in ("client", "coordinator")
        for phase in ("join", "broadcast", "train", "upload")
    ),
]


def disturb(drill: Drill, what: str, who: str) -> None:
    """What happens on a wire."""
    wire = drill.wires[who]
    if what == "disconnect":
        drill.cut(who)
    elif what == "silence":
        wire.hold()
        drill.later(2.5 * LEASE, wire.mend)
    elif what == "slow":
        wire.rate, wire.delay = 4000.0, 0.05
        drill.later(3 * LEASE, wire.mend)
    else:
        wire.damage(what)


@pytest.mark.parametrize(
    ("what", "who", "phase"),
    [
        pytest.param(*each.split(), id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for each in WIRES
        for name in ["{}-{}-during-{}".format(*each.split())]
    ],
)
def test_a_bad_wire_costs_time_only(tmp_path: Path, what: str, who: str, phase: str) -> None:
    at = "south" if who == "client" else who
    moment = (at, phase, 0 if phase == "join" else 2)
    with Drill(tmp_path) as drill:
        drill.at[moment] = lambda: disturb(drill, what, at)
        drill.play()
        assert drill.reached == [moment]
        if what in ("flip", "truncate"):
            assert drill.wires[at].done == 1, "nothing was damaged"
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["join", "train", "commit"])
def test_everyone_is_cut_off_at_once(tmp_path: Path, phase: str) -> None:
    with Drill(tmp_path) as drill:
        drill.at["south", phase, 0 if phase == "join" else 2] = lambda: drill.cut(*drill.wires)
        drill.play()
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
def test_a_client_that_is_slow_all_the_time(tmp_path: Path) -> None:
    with Drill(tmp_path) as drill:
        drill.wires["south"].rate, drill.wires["south"].delay = 20_000.0, 0.03
        drill.play()
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()
