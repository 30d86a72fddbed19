"""Clients that are late, die or come back, a coordinator that dies: the bytes of a run of those who answered."""

from __future__ import annotations

from collections import Counter

import pytest
from memory_link import Broker, CoordinatorLink, Skip
from remote_toy import (
    DROP,
    FEW,
    ONLY,
    REMOTE,
    Remote,
    engine,
    local_run,
    over,
    same,
    write_toy,
)

from fedloom import api
from fedloom.engines.remote.link import Unreachable
from fedloom.errors import RunError


def test_one_who_is_late_is_dropped_and_the_round_is_that_of_the_others(toy, remote, tmp_path):
    def before(ask):
        if ask.client == "hills" and ask.kind == "train":
            raise Skip

    remote.crew.before = before
    remote.time_is_up_when(1, answers=3)
    remote.go(api.load(toy, [engine(quorum=3), "federation.rounds=1"]))
    assert same(remote.w, over(toy, tmp_path / "others", set(FEW) - {"hills"}))
    (report,) = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert report["client"] == "hills" and report["reason"] == "it did not answer within 60 seconds"
    assert not remote.broker.waiting
    assert len(remote.broker.withdrawn) == 1


@pytest.mark.slow
def test_a_round_without_its_quorum_stops_and_goes_on_later(toy, remote, tmp_path):
    absent = {"lake", "north"}

    def before(ask):
        if ask.client in absent and ask.kind == "train" and ask.round == 2:
            raise Skip

    remote.crew.before = before
    remote.time_is_up_when(2, answers=2)
    experiment = api.load(toy, [engine(quorum=3), "algorithm=scaffold"])
    with pytest.raises(
        RunError, match=r"round 2 has 2 of the 3 updates that it needs; .*60 seconds were over"
    ) as caught:
        remote.go(experiment)
    assert all(name in str(caught.value) for name in absent) and "fedloom resume" in str(caught.value)
    absent.clear()
    remote.time_is_up_when(2, answers=99)
    remote.go(experiment, again=True)
    assert same(remote.w, local_run(toy, [ONLY, "algorithm=scaffold"], tmp_path / "local")[1])
    trained = Counter((n, r) for n, r, kind in remote.crew.handled if kind == "train")
    assert len(trained) == 8 and set(trained.values()) == {1}


def test_without_a_quorum_all_are_needed(toy, remote):
    def before(ask):
        if ask.client == "lake" and ask.kind == "train":
            raise Skip

    remote.crew.before = before
    remote.time_is_up_when(1, answers=3)
    with pytest.raises(RunError, match="round 1 has 3 of the 4 updates"):
        remote.go(api.load(toy, [REMOTE, DROP]))


@pytest.mark.slow
def test_the_first_updates_close_a_round(toy, remote, tmp_path):
    slow = {"north", "coast"}

    def before(ask):
        if ask.client in slow and ask.kind == "train":
            raise Skip

    remote.crew.before = before
    remote.go(api.load(toy, [engine(first=2), "federation.rounds=1"]))
    assert same(remote.w, over(toy, tmp_path / "others", set(FEW) - slow))
    reports = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert {r["client"] for r in reports} == slow
    assert {r["reason"] for r in reports} == {"the round was closed when 2 updates had arrived"}


@pytest.mark.slow
def test_what_a_late_client_learnt_does_not_count_for_itself_either(toy, remote, tmp_path, monkeypatch):
    """SCAFFOLD's control variate of one who trained in vain is as if it had not been there."""
    ends = []
    for late in (False, True):
        made = Remote(tmp_path / f"late-{late}", Broker(), monkeypatch, FEW)
        made.folder.mkdir()
        write_toy(made.folder)

        tried = []

        def before(ask, made=made, late=late, tried=tried):
            if (ask.client, ask.kind, ask.round) != ("hills", "train", 1):
                return
            link = made.crew.nodes["hills"]._link
            if late and not tried:
                tried.append(ask)
                link.answer = lambda *_: None
                made.crew.nodes["hills"].handle(ask)  # it trains, and its answer is lost on the way
                del link.answer
            raise Skip

        made.crew.before = before
        with made.crew:
            made.crew.join(*FEW)
            made.time_is_up_when(1, answers=3)
            made.go(api.load(toy, [engine(quorum=3), "algorithm=scaffold", "federation.rounds=3"]))
        trained = [r for r in made.records("clients") if r.get("client") == "hills" and r.get("status") == "ok"]
        assert [r["round"] for r in trained] == [2, 3] and len(tried) == late
        ends.append(made.w)
    assert same(*ends)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedper", "scaffold"])
def test_a_client_that_dies_and_comes_back_changes_nothing(name, toy, remote, tmp_path):
    """It dies before round 2, and again when it has trained and not yet answered."""
    died = set()

    def before(ask):
        if ask.client != "coast" or ask.kind != "train" or ask.round not in (2, 3) or ask.round in died:
            return
        died.add(ask.round)
        node = remote.crew.nodes["coast"]
        if ask.round == 3:
            node._link.answer = lambda *_: None
            node.handle(ask)
        remote.crew.leave("coast")
        remote.crew.join("coast")
        raise Skip

    remote.crew.before = before
    overrides = [f"algorithm={name}", "federation.rounds=3"]
    remote.go(api.load(toy, [REMOTE, *overrides]))
    assert died == {2, 3}
    assert same(remote.w, local_run(toy, [ONLY, *overrides], tmp_path / "local")[1])


class Killed(BaseException):
    """The coordinator dies."""


class Mortal(CoordinatorLink):
    """Dies when so many answers of a round have come."""

    def __init__(self, broker, round, answers):
        super().__init__(broker)
        self.round, self.left = round, answers

    def answers(self, asks, timeout):
        if asks[0].kind == "train" and asks[0].round == self.round:
            if self.left <= 0:
                raise Killed
            found = super().answers(asks, timeout)
            self.returned -= {answer.ask for answer in found[self.left :]}
            found = found[: self.left]
            self.left -= len(found)
            return found
        return super().answers(asks, timeout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scaffold", pytest.param("fedex_lora", marks=pytest.mark.slow), "fedbuff"])
def test_a_coordinator_that_dies_goes_on_without_any_training_anew(name, toy, remote, tmp_path):
    algorithm = "algorithm={name: fedbuff, buffer: 2}" if name == "fedbuff" else f"algorithm={name}"
    overrides = [algorithm, "federation.rounds=3"]
    experiment = api.load(toy, [REMOTE, *overrides])
    with pytest.raises(Killed):
        remote.go(experiment, link=Mortal(remote.broker, *(1, 1) if name == "fedbuff" else (2, 2)))
    remote.go(experiment, again=True)
    assert same(remote.w, local_run(toy, [ONLY, *overrides], tmp_path / "local")[1])
    trained = Counter((n, r) for n, r, kind in remote.crew.handled if kind == "train")
    assert set(trained.values()) == {1}
    assert Counter(kind for _, _, kind in remote.crew.handled)["open"] == len(FEW)


class Cut(CoordinatorLink):
    """The broker is away when the first update is to be fetched."""

    def fetch(self, answer, limit):
        raise Unreachable("nothing was achieved")


def test_a_coordinator_whose_broker_is_away_blames_no_client(toy, remote, tmp_path):
    experiment = api.load(toy, [REMOTE, DROP, "federation.rounds=1"])
    with pytest.raises(Unreachable):
        remote.go(experiment, link=Cut(remote.broker))
    remote.go(experiment, again=True)
    assert same(remote.w, local_run(toy, [ONLY, "federation.rounds=1"], tmp_path / "local")[1])


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed(toy, remote, tmp_path):
    experiment = api.load(toy, [REMOTE, "federation.rounds=3"])
    seen = []
    remote.go(experiment, listeners=[lambda _, record: seen.append(record)], stop_asked=lambda: len(seen) > 2)
    assert not remote.finished and remote.records()[-1]["round"] == 2
    remote.go(experiment, again=True)
    assert remote.finished and same(remote.w, local_run(toy, [ONLY, "federation.rounds=3"], tmp_path / "local")[1])
