"""Answers that are forged, failures and refusals: each is named, and harms nobody else."""

from __future__ import annotations

import re

import pytest
from memory_link import CoordinatorLink, Skip
from remote_toy import (
    DROP,
    FEW,
    FORWARD,
    ONLY,
    REMOTE,
    engine,
    over,
    same,
    site_of,
)

from fedloom import api
from fedloom.engines.remote import resident as resident_module
from fedloom.errors import ClientError, FedloomError, RunError

FORGERIES = {
    "a foreign layout": (lambda h, t: (h.model_copy(update={"layout": "0" * 64}), t), "layout"),
    "a number that is none": (lambda h, t: (h, {"delta": t["delta"] * float("nan")}), "not finite"),
    "another shape": (lambda h, t: (h, {"delta": t["delta"][:-1]}), "declared"),
    "another tensor": (lambda h, t: (h, {"gradient": t["delta"]}), "declared"),
    "too many bytes": (lambda h, t: (h, {"delta": t["delta"].repeat(9)}), "larger than"),
    "another round": (lambda h, t: (h.model_copy(update={"round": 7}), t), "ts round is 7"),
    "another client": (lambda h, t: (h.model_copy(update={"client": "hills"}), t), "ts client is 'hills'"),
    "a weight of its own": (lambda h, t: (h.model_copy(update={"weight": 1e9}), t), "ts weight is 1000000000.0"),
    "more steps": (lambda h, t: (h.model_copy(update={"steps": 99}), t), "ts number of steps is 99"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_update_is_refused_named_and_harms_nobody_else(case, toy, remote, tmp_path, monkeypatch):
    change, said = FORGERIES[case]
    honest = resident_module._message

    def message(own, work, update):
        header, tensors = honest(own, work, update)
        return change(header, dict(tensors)) if update.report.client == "lake" else (header, tensors)

    monkeypatch.setattr(resident_module, "_message", message)
    remote.go(api.load(toy, [REMOTE, DROP, "federation.rounds=1"]))
    (report,) = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert report["client"] == "lake" and said in report["reason"] and "client 'lake', round 1" in report["reason"]
    assert same(remote.w, over(toy, tmp_path / "others", set(FEW) - {"lake"}))


def test_where_the_policy_is_to_stop_a_forger_is_named(toy, remote, monkeypatch):
    honest = resident_module._message

    def message(own, work, update):
        header, tensors = honest(own, work, update)
        return header, ({"delta": tensors["delta"] * float("nan")} if update.report.client == "lake" else tensors)

    monkeypatch.setattr(resident_module, "_message", message)
    with pytest.raises(ClientError, match=r"client 'lake', round 1: .*not finite"):
        remote.go(api.load(toy, [REMOTE]))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"facts": {"forward_equivalents": -1, "directions": 0}}, "cannot be read"),
        ({"facts": {"forward_equivalents": 1, "directions": 0, "beside": "x"}}, "cannot be read"),
        ({"facts": {}}, "cannot be read"),
        ({"content": None}, "refused"),
        ({"status": "failed", "reason": "no\x1b[2J\n way"}, "no[2J\n way"),
        ({"ask": "0" * 64}, "did not answer"),
    ],
)
def test_a_forged_answer_is_refused(answer, said, toy, remote):
    class Forging(CoordinatorLink):
        def answers(self, asks, timeout):
            found = super().answers(asks, timeout)
            return [
                a.model_copy(update=answer) if a.client == "lake" and a.id.endswith("train.0") else a for a in found
            ]

    remote.time_is_up_when(1, answers=4)
    remote.go(api.load(toy, [engine(quorum=3), DROP, "federation.rounds=1"]), link=Forging(remote.broker))
    (report,) = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert report["client"] == "lake" and said in report["reason"]


def test_a_forged_count_of_derivatives_is_refused(toy, remote, tmp_path, monkeypatch):
    honest = resident_module._message

    def message(own, work, update):
        header, tensors = honest(own, work, update)
        if update.report.client == "lake":
            short = {"derivatives": tensors["derivatives"][:-1]}
            return header.model_copy(update={"directions": header.directions - 1}), short
        return header, tensors

    monkeypatch.setattr(resident_module, "_message", message)
    remote.go(api.load(toy, [REMOTE, DROP, FORWARD, "federation.rounds=1"]))
    (report,) = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert report["client"] == "lake" and "too few" in report["reason"]


@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_a_client_that_fails_is_shown_with_its_place(policy, toy, remote, tmp_path, monkeypatch):
    honest = resident_module.train_group

    def failing(prepared, *rest):
        if prepared.train.clients == ["lake"]:
            raise ZeroDivisionError("out of luck")
        return honest(prepared, *rest)

    monkeypatch.setattr(resident_module, "train_group", failing)
    experiment = api.load(toy, [REMOTE, f"federation.on_failure={policy}", "federation.rounds=1"])
    if policy == "stop":
        with pytest.raises(ClientError, match="client 'lake', round 1: ZeroDivisionError: out of luck") as caught:
            remote.go(experiment)
        assert "in failing" in str(caught.value)
        return
    remote.go(experiment)
    (report,) = [r for r in remote.records("clients") if r.get("status") == "dropped"]
    assert "ZeroDivisionError: out of luck" in report["reason"]
    assert same(remote.w, over(toy, tmp_path / "others", set(FEW) - {"lake"}))


def test_a_client_that_diverges_says_what_a_local_one_says(toy, remote, tmp_path):
    overrides = ["local.lr=1e30", DROP, "federation.rounds=1", "data.validation=0"]
    with pytest.raises(FedloomError) as here:
        api.run(api.load(toy, [ONLY, *overrides]), tmp_path / "local")
    with pytest.raises(FedloomError) as there:
        remote.go(api.load(toy, [REMOTE, *overrides]))
    told = [re.sub(r"table rows .*?]", "", str(error.value)) for error in (here, there)]  # each counts rows of its own
    assert told[0] == told[1] and "the loss was" in told[0]


def refusing(name):
    return site_of(name, max_rounds=1) if name == "lake" else site_of(name)


@pytest.mark.slow
def test_one_who_refuses_stops_the_run_or_is_left_out(toy, remote, tmp_path):
    remote.make_site = refusing
    remote.crew.leave("lake")
    remote.crew.join("lake")
    with pytest.raises(
        RunError, match=r"1 of 4 clients do not take part.*lake: .*2 rounds are more than this client's 1"
    ):
        remote.go(api.load(toy, [REMOTE]))
    remote.go(api.load(toy, [REMOTE, DROP]), run="run-2")
    assert same(remote.w, over(toy, tmp_path / "others", set(FEW) - {"lake"}, rounds=2))
    assert any("lake does not take part" in str(e) for e in remote.records("events"))


def test_one_who_is_away_is_not_judged_and_the_round_does_not_wait(toy, remote):
    def before(ask):
        if ask.client == "lake" and ask.kind == "train" and ask.round == 1:
            remote.broker.online.pop("lake", None)
        if ask.client == "lake" and ask.kind == "evaluate":
            raise Skip

    remote.crew.before = before
    remote.broker.online.pop("lake")
    remote.go(api.load(toy, [engine(round_deadline=30)]))
    assert remote.records()[-1]["seconds"] < 25
    judged = {r["client"] for r in remote.records("clients") if "evaluated" in r}
    assert judged == set(FEW) - {"lake"}
    assert any("away: lake" in str(e) for e in remote.records("events"))


def test_an_update_is_bounded_before_it_is_fetched(toy, remote):
    """What is asked for is the size of what the algorithm declares, to the byte."""
    limits = []

    class Watching(CoordinatorLink):
        def fetch(self, answer, limit):
            limits.append((limit, answer.content.size))
            return super().fetch(answer, limit)

    remote.go(api.load(toy, [REMOTE, "federation.rounds=1"]), link=Watching(remote.broker))
    assert len(limits) == 4 and all(0 <= limit - size <= 4200 for limit, size in limits)


def test_what_is_kept_at_the_broker_is_let_go(toy, remote):
    remote.go(api.load(toy, [REMOTE, "federation.rounds=5"]))
    assert remote.broker.forgotten == [1, 1, 2, 3, 4]  # two checkpoints are kept
