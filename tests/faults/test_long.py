"""Many faults in one run: fifty kills at random moments, and a hundred rounds in which three clients in ten drop out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from drill_federation import COORDINATOR, Drill
from drill_mischief import fate
from drill_reference import CLIENTS

BROKER = "broker"
ROUNDS, KILLS = 25, 50


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [0])
def test_fifty_kills_at_random_moments(tmp_path: Path, seed: int) -> None:
    """Two a round and two more, of anyone, whatever they do just then: nobody is left out, and the bytes are the same."""
    r, done = random.Random(seed), list[str]()
    with Drill(tmp_path, rounds=ROUNDS, deadline=120.0) as drill:

        def kill(name: str) -> None:
            if drill.broker.pid is None if name == BROKER else name not in drill.processes:
                drill.later(0.1, lambda: kill(name))  # it is not back from the last time
                return
            if name == BROKER:
                drill.kill_broker(back=0.1)
            else:
                drill.kill(name, back=0.1)
            done.append(name)

        for round in range(1, ROUNDS):
            victims = [r.choice([*CLIENTS, COORDINATOR, BROKER]) for _ in range(2 + (round in (5, 15)))]
            delays = [r.uniform(0.0, 0.3) for _ in victims]
            drill.at[COORDINATOR, "train", round] = lambda v=victims, d=delays: [
                drill.later(wait, lambda name=name: kill(name)) for name, wait in zip(v, d, strict=True)
            ]
        drill.play(timeout=700)
        assert len(done) == KILLS
        drill.check()
        assert sum(drill.trained.values()) <= 3 * ROUNDS + sum(name in CLIENTS for name in done)
        drill.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_rounds_with_dropout(tmp_path: Path) -> None:
    """Clients fail, are late or die in three rounds of ten, each by itself; nobody does anything about it."""
    rounds = 100
    mischief = {name: [("drops_out", name)] for name in CLIENTS}
    changes = {"deadline": 2.5, "quorum": 1, "federation__on_failure": "drop"}
    planned = {(name, r) for name in CLIENTS for r in range(1, rounds + 1) if fate(name, r) != "answers"}
    alone = [r for r in range(1, rounds + 1) if all((name, r) in planned for name in CLIENTS)]
    assert 0.25 <= len(planned) / (3 * rounds) <= 0.35 and not alone, (len(planned), alone)
    with Drill(tmp_path, rounds=rounds, mischief=mischief, **changes) as drill:
        drill.play(timeout=700)
        dropped = drill.dropped
        drill.check(dropped)
        sure = {(name, r) for name, r in planned if fate(name, r) != "dies"}
        assert sure <= dropped, "who failed or was late is left out"
        assert all(name in CLIENTS for name, _ in drill.exits), "the coordinator ran through"
        drill.end()
