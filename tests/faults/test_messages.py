"""Messages that come twice, in another order, cut, damaged, from the past or of another's key; full disks; clocks that jump."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from drill_federation import COORDINATOR, Drill

SHORT = 10.0
"""Seconds of a round's deadline where somebody will not be heard."""
DAY = 86400.0

Order = tuple[str, str, Any]
"""A party, what is installed in its process, and what that is told."""

PLACES = [("join", 0), ("broadcast", 2), ("train", 2), ("upload", 2), ("commit", 2)]
HARMLESS: dict[str, Order] = {
    "duplicate-coordinator-join": (COORDINATOR, "said_twice", "fl.ask."),
    "duplicate-coordinator-broadcast": (COORDINATOR, "said_twice", "fl.down."),
    "duplicate-client-broadcast": ("south", "chunks_arrive_twice", None),
    "duplicate-client-train": ("south", "asked_twice", None),
    "duplicate-client-upload": ("south", "said_twice", "fl.up."),
    "duplicate-client-commit": ("south", "said_twice", "fl.ans."),
    "duplicate-coordinator-commit": (COORDINATOR, "heard_twice", None),
    "reorder-client-broadcast": ("south", "chunks_arrive_backwards", None),
    "reorder-client-upload": ("south", "chunks_leave_backwards", None),
    "reorder-client-commit": ("south", "old_answers_again", None),
    "wrong-key-coordinator-train": (COORDINATOR, "forged_asks", None),
    "wrong-key-client-beats": ("south", "other_signature", ("beat", 0)),
    "clock-ahead-client-start": ("south", "clock_jumps", ("start", -1, 20 * DAY)),
    **{f"clock-ahead-client-{at}": ("south", "clock_jumps", (at, round, DAY)) for at, round in PLACES},
    **{f"clock-back-coordinator-{at}": (COORDINATOR, "clock_jumps", (at, round, -DAY)) for at, round in PLACES},
}  # fmt: skip


def params(table: dict[str, Any], *quick: str) -> list[Any]:
    """Each by its name."""
    return [
        pytest.param(each, id=name, marks=[] if name in quick else pytest.mark.slow) for name, each in table.items()
    ]


@pytest.mark.parametrize("order", params(HARMLESS))
def test_it_changes_nothing(tmp_path: Path, order: Order) -> None:
    party, what, told = order
    with Drill(tmp_path, mischief={party: [(what, told)]}) as drill:
        drill.play()
        if what == "clock_jumps":
            assert drill.noted(party, "jumped") == [told[0]]
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


REFUSED: dict[str, tuple[Order, str]] = {
    "truncate-client-upload-chunk": (("south", "damaged_message", ("truncate", "fl.up.", 2)), "bytes instead of"),
    "flip-client-upload-chunk": (("south", "damaged_message", ("flip", "fl.up.", 2)), "SHA-256"),
    "truncate-client-update": (("south", "damaged_update", ("truncate", 2)), "refused"),
    "flip-client-update": (("south", "damaged_update", ("flip", 2)), "refused"),
    "truncate-client-broadcast": (("south", "damaged_download", ("truncate", ".2.")), "bytes instead of"),
    "flip-client-broadcast": (("south", "damaged_download", ("flip", ".2.")), "SHA-256"),
    "stale-format-client-upload": (("south", "other_format", 2), "version"),
    "stale-layout-client-upload": (("south", "other_header", (2, {"layout": "0" * 64})), "layout"),
    "stale-round-client-upload": (("south", "other_header", (2, {"round": 1})), "round is 1"),
    "disk-full-client-train": (("south", "full_disk", ("kept answer", 1)), "No space left"),
}
"""What is refused the moment it comes, and the word that the record must have of it."""


@pytest.mark.parametrize("case", params(REFUSED))
def test_it_is_refused_and_the_client_left_out_of_that_round(tmp_path: Path, case: tuple[Order, str]) -> None:
    (party, what, told), reason = case
    with Drill(tmp_path, mischief={party: [(what, told)]}, federation__on_failure="drop") as drill:
        drill.play()
        lost = 1 if what == "full_disk" else 2
        drill.check({("south", lost)}, {("south", lost): reason})
        drill.end()


UNHEARD: dict[str, tuple[Order, str]] = {
    "truncate-client-commit": (("south", "damaged_message", ("truncate", "fl.ans.", 3)), "signature"),
    "flip-client-commit": (("south", "damaged_message", ("flip", "fl.ans.", 3)), "signature"),
    "truncate-coordinator-train": ((COORDINATOR, "damaged_ask", ("truncate", "south", 3)), "signature"),
    "flip-coordinator-train": ((COORDINATOR, "damaged_ask", ("flip", "south", 3)), "signature"),
    "stale-answer-client-commit": (("south", "old_answer_instead", 3), ""),
    "wrong-key-client-commit": (("south", "other_signature", ("answer", 3)), "signature"),
}
"""What counts for nothing: who sent it is waited for until the deadline, and its log, or the coordinator's, names it."""


@pytest.mark.parametrize("case", params(UNHEARD))
def test_it_counts_for_nothing(tmp_path: Path, case: tuple[Order, str]) -> None:
    (party, what, told), reason = case
    changes = {"deadline": SHORT, "quorum": 2, "federation__on_failure": "drop"}
    with Drill(tmp_path, mischief={party: [(what, told)]}, **changes) as drill:
        drill.play()
        drill.check({("south", 3)}, {("south", 3): "did not answer within 10 seconds"})
        if reason:  # an answer that was true once, and is known, is no forgery
            log = drill.said("south" if what == "damaged_ask" else COORDINATOR)
            assert re.search(rf"refused: .*'south'.*{reason}", log), log
        drill.end()


STRANGERS: dict[str, tuple[Order, str]] = {
    "flip-coordinator-join": ((COORDINATOR, "damaged_ask", ("flip", "south", 0)), "did not answer"),
    "truncate-client-join": (("south", "damaged_message", ("truncate", "fl.ans.", 0)), "did not answer"),
    "flip-client-join": (("south", "damaged_download", ("flip", "experiment")), "SHA-256"),
    "wrong-key-client-join": (("south", "other_signature", ("answer", 0)), "did not answer"),
    "disk-full-client-join": (("south", "full_disk", ("opening", 1)), "No space left"),
}
"""Who never takes part."""


@pytest.mark.parametrize("case", params(STRANGERS))
def test_the_run_goes_on_without_who_does_not_join(tmp_path: Path, case: tuple[Order, str]) -> None:
    (party, what, told), reason = case
    changes = {"deadline": SHORT, "federation__on_failure": "drop"}
    with Drill(tmp_path, mischief={party: [(what, told)]}, **changes) as drill:
        drill.play()
        drill.check(without={"south"})
        notes = [line["text"] for line in drill.lines("events") if line["kind"] == "note"]
        assert any("south does not take part" in note and reason in note for note in notes), notes
        drill.end()


LAPSES: dict[str, tuple[Order, str]] = {
    "disk-full-client-upload": (("south", "full_disk", ("said", 1)), "said"),
    "disk-full-client-commit": (("south", "full_disk", ("owner's log", 1)), "owner's log"),
}


@pytest.mark.parametrize("case", params(LAPSES))
def test_a_client_whose_disk_was_full_for_a_moment_goes_on(tmp_path: Path, case: tuple[Order, str]) -> None:
    """Its process may end; started again, it says what it had worked out."""
    (party, what, told), note = case
    with Drill(tmp_path, mischief={party: [(what, told)]}) as drill:
        drill.play()
        assert drill.noted("south", "full") == [note]
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_what_a_dead_coordinator_stored_damaged_does_no_harm(tmp_path: Path, how: str) -> None:
    with Drill(tmp_path, mischief={COORDINATOR: [("damaged_store", (how, 2))]}) as drill:
        drill.at[COORDINATOR, "broadcast", 2] = lambda: drill.kill(COORDINATOR)
        drill.play()
        assert len(drill.noted(COORDINATOR, "damaged")) == 1
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoint", "metrics"])
def test_a_coordinator_whose_disk_is_full_says_so_and_can_be_taken_on(tmp_path: Path, what: str) -> None:
    """The job fails with the disk's own words; once there is room it goes on, and nobody trains again."""
    with Drill(tmp_path, mischief={COORDINATOR: [("full_disk", (what, 1))]}) as drill:
        job = drill.play()
        assert job.state == "failed" and "No space left" in (job.error or "")
        drill.kill(COORDINATOR, back=None)
        drill.jobs.update(job, state="queued", error=None)
        drill.play()
        drill.check()
        assert set(drill.trained.values()) == {1}
        drill.end()


@pytest.mark.slow
def test_wrong_key_at_the_door(tmp_path: Path) -> None:
    """A client with another federation's secret is told so and ends; the others go on."""
    with Drill(tmp_path, deadline=SHORT, federation__on_failure="drop") as drill:
        drill.revive = False
        drill.swap_secret("south")
        drill.play()
        assert ("south", 2) in drill.exits
        assert "does not know the key of 'south'" in drill.said("south")
        drill.check(without={"south"})
        drill.end()


@pytest.mark.slow
def test_a_clock_before_the_certificate(tmp_path: Path) -> None:
    """A client whose clock is a year behind is told so and ends; the others go on."""
    order = ("clock_jumps", ("start", -1, -365 * DAY))
    with Drill(tmp_path, deadline=SHORT, mischief={"south": [order]}, federation__on_failure="drop") as drill:
        drill.revive = False
        drill.play()
        assert ("south", 2) in drill.exits
        assert "the clock of this machine says" in drill.said("south").lower()
        drill.check(without={"south"})
        drill.end()
