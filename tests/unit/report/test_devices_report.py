"""Devices in the report: the numbers, the timeline, and curves on the virtual clock, in a sweep too."""

import json
from types import SimpleNamespace

import pytest
import toy

from fedloom.tracking.report.costs import Subject, cost_panels
from fedloom.tracking.report.device_figure import device_tiles, timeline
from fedloom.tracking.report.wording import clock_unit
from fedloom.tracking.sweep.results import Goal, _curve, _reached


def record(client, status, began, seconds, round=1):
    return {"round": round, "client": client, "status": status, "virtual_began": began, "virtual_seconds": seconds}


def run_of(rounds, clients, names=("a", "b", "c", "d")):
    """A run's files, as the figures read them."""

    def curve(key):
        own = [r for r in rounds if r.get(key) is not None]
        return [r["round"] for r in own], [r[key] for r in own]

    return SimpleNamespace(
        rounds=rounds,
        curve=curve,
        client_records=lambda: iter(clients),
        partition={"clients": list(names)},
        metric="eval_loss",
    )


ROUNDS = [
    {"round": 0, "eval_loss": 2.0},
    {
        "round": 1, "eval_loss": 1.0, "virtual_seconds": 3600.0, "asked": 4, "late": 1, "offline": 1,
        "device_seconds": 5400.0, "wasted_seconds": 1800.0, "wasted_bytes_down": 1000, "wasted_bytes_up": 500,
    },
    {
        "round": 2, "eval_loss": 0.5, "virtual_seconds": 10_800.0, "asked": 2, "late": 0, "offline": 0,
        "device_seconds": 9000.0, "wasted_seconds": 0.0, "wasted_bytes_down": 0, "wasted_bytes_up": 0,
    },
]  # fmt: skip
CLIENTS = [
    record("a", "ok", 0.0, 1800.0),
    record("b", "ok", 0.0, 3600.0),
    record("c", "late", 0.0, 3600.0),
    record("d", "offline", 0.0, 100.0),
    record("a", "ok", 3600.0, 1800.0, 2),
    record("b", "ok", 3600.0, 7200.0, 2),
]


def test_the_numbers_by_hand():
    """Of 4 h at work 30 min are wasted. a and b have two updates each, c and d none: Jain's index is 4^2 / (4 x 8) = 0.5, and the
    busiest of the four did half."""
    tiles = {tile.label: tile for tile in device_tiles(run_of(ROUNDS, CLIENTS))}
    assert tiles["Asked"].value == "6" and tiles["Asked"].note == "1 late, 1 went offline"
    assert tiles["Devices at work"].value == "4 h 30 min" and tiles["Devices at work"].note == "11% of it wasted"
    assert tiles["Sent in vain"].value == "1.5 kB"
    assert tiles["Took part"].value == "2 of 4 clients" and tiles["Took part"].note == "the busiest 30% did 50%"
    assert tiles["Fairness"].value == "0.50"


def test_without_devices_there_is_nothing_to_say():
    bare = [{"round": 0, "eval_loss": 2.0}, {"round": 1, "eval_loss": 1.0}]
    clients = [{"round": 1, "client": "a", "status": "ok"}]
    assert device_tiles(run_of(bare, clients)) == [] and timeline(run_of(bare, clients)) is None
    assert [panel.title for panel in cost_panels([Subject("x", "#000000", run_of(bare, clients))], "eval_loss")] == []


def test_the_timeline_has_a_bar_a_client():
    drawn = timeline(run_of(ROUNDS, CLIENTS))
    (axes,) = drawn.figure.axes
    bars = [patch for patch in axes.patches if patch.get_width()]
    assert sorted(round(60 * bar.get_width()) for bar in bars) == [2, 30, 30, 60, 60, 120]  # in minutes, of hours
    assert len({bar.get_facecolor() for bar in bars}) == 3
    assert axes.get_xlabel() == "Virtual hours" and "first 2 rounds" in drawn.caption


def test_a_long_run_shows_its_first_rounds():
    clients = [record(f"c{k}", "ok", 10.0 * r, 5.0, r) for r in range(1, 100) for k in range(30)]
    drawn = timeline(run_of(ROUNDS, clients))
    assert "first 5 rounds" in drawn.caption
    crowd = [record(f"c{k}", "ok", 0.0, 5.0, 1) for k in range(1000)]
    assert "first 1 round:" in timeline(run_of(ROUNDS, crowd)).caption


def test_curves_on_the_virtual_clock():
    (panel,) = (
        p for p in cost_panels([Subject("x", "#000000", run_of(ROUNDS, CLIENTS))], "eval_loss") if "Virtual" in p.title
    )
    assert panel.title == "Virtual hours" and panel.lines[0].rounds == [0.0, 3600.0, 10_800.0]
    assert panel.lines[0].values == [2.0, 1.0, 0.5] and panel.write(10_800.0) == "3"
    curve = _curve(run_of(ROUNDS, CLIENTS), "eval_loss")
    assert curve.clock == (0.0, 3600.0, 10_800.0)
    assert _reached(run_of(ROUNDS, CLIENTS), Goal("eval_loss", 0.7)).clock == 10_800.0
    assert _curve(run_of([*ROUNDS[:1], {"round": 1, "eval_loss": 1.0}], []), "eval_loss").clock == ()


@pytest.mark.parametrize(
    ("most", "unit"),
    [(100, (1.0, "seconds")), (600, (60.0, "minutes")), (11_000, (3600.0, "hours")), (10**6, (86_400.0, "days"))],
)
def test_times_are_drawn_in_a_unit_that_suits_them(most, unit):
    assert clock_unit(most) == unit


def test_a_run_of_ones_own_is_drawn(tmp_path):
    from fedloom.tracking.reading import RunFiles

    made = toy.factors(
        clients=8, local={"steps": 2}, devices={"kind": "generated", "cost": 3000.0},
        federation={"clients_per_round": 4, "wait": {"kind": "overcommit", "factor": 1.5}, "rounds": 5},
    )  # fmt: skip
    federation = toy.federate(made, tmp_path, 5, evaluation={"every": 1})
    (federation.run_dir.path / "config.yaml").write_text("name: toy\n")
    (federation.run_dir.path / "manifest.json").write_text(json.dumps({"status": "finished"}))
    files = RunFiles.open(federation.run_dir.path)
    asked = sum(r["asked"] for r in files.rounds if r["round"])
    assert device_tiles(files)[0].value == str(asked)
    bars = list(timeline(files).figure.axes[0].patches)
    assert len(bars) == asked
