"""`engine: remote` over a link in memory: the same bytes as a local run, whatever happens on the way."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from memory_link import Broker, CoordinatorLink, Skip
from remote_toy import REMOTE, SITES, Remote, local_run, same, settings_of, site_of, write_toy

from fedloom import api
from fedloom.algorithms import ALGORITHMS
from fedloom.engines.remote import resident as resident_module
from fedloom.engines.remote.standin import StandIn, prepare_again, prepare_remote
from fedloom.errors import ClientError, ConfigError, FedloomError, RunError, UsageError
from fedloom.local.batches import steps_of
from fedloom.local.prepare import prepare_data

FAST = {"fedavg"}
FEW = ("coast", "hills", "lake", "north")
DROP = "federation.on_failure=drop"


@pytest.fixture(autouse=True)
def light(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)
    torch.set_num_threads(1)


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path)


@pytest.fixture
def everyone(tmp_path, monkeypatch):
    made = Remote(tmp_path, Broker(), monkeypatch)
    with made.crew:
        made.crew.join(*SITES)
        yield made


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Four clients, which is quicker."""
    made = Remote(tmp_path, Broker(), monkeypatch, FEW)
    with made.crew:
        made.crew.join(*FEW)
        yield made


def engine(**more):
    return "engine=" + json.dumps({"kind": "remote", "threads": 1, "device": "cpu", "round_deadline": 60} | more)


NAMES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in ALGORITHMS
    if name not in ("central", "fedgpl")
]
FORWARD = 'local.gradient={"kind": "forward", "directions": 3, "upload": "seeds"}'
PRIORITY = 'layers={"kind": "priority", "top": 1, "bottom": 0, "seen_by": "clients"}'
MIXED = {
    "a sample of clients by tokens, an epoch each": (
        "federation.clients_per_round=3", "federation.weighting=tokens", "local.steps=null", "local.epochs=1",
        "federation.rounds=3",
    ),
    "a validation split of its own": ("data.validation=0.3",),
    "derivatives alone": (FORWARD,),
    "derivatives and scores": (FORWARD, PRIORITY),
    "layers by the clients' scores": (PRIORITY, "federation.rounds=3"),
    "layers shared out": ('layers={"kind": "split"}',),
    "an algorithm's own layers": ("algorithm={name: fedgpl, train_mode: fed}",),
    "ranks that differ": ("algorithm=flora", "adapter.ranks=[2, 4]"),
    "optimizers that go on": ("local.optimizer=adamw", "local.optimizer_state=keep", "local.lr=0.01"),
    "personal layers and a server's momentum": ("algorithm={name: fedsa_lora, with: fedavgm}",),
    "small groups": ("engine.group_size=3",),
    "directions guided by the last update": (
        'local.gradient={"kind": "jvp", "directions": 2, "guidance": "complement"}', "federation.rounds=3",
    ),
}  # fmt: skip
QUICK = {"a validation split of its own"}


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_ends_in_the_same_bytes(name, toy, everyone, tmp_path):
    rounds = 4 if name in ("fedbuff", "fedasync") else 2
    overrides = [*settings_of(name, toy.parent), "local.grouping=in_place", f"federation.rounds={rounds}"]
    manifest, w = local_run(toy, overrides, tmp_path / "local")
    everyone.go(api.load(toy, [*overrides, REMOTE]))
    assert same(everyone.w, w)
    assert everyone.manifest.get("adapter_sha256") == manifest.get("adapter_sha256")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in MIXED])
def test_every_setting_ends_in_the_same_bytes(case, toy, everyone, tmp_path):
    overrides = list(MIXED[case])
    manifest, w = local_run(toy, overrides, tmp_path / "local")
    asked = [o.replace("engine.group_size=3", engine(group_size=3)) for o in overrides]
    everyone.go(api.load(toy, asked if any("remote" in o for o in asked) else [REMOTE, *asked]))
    assert same(everyone.w, w)
    assert everyone.manifest["adapter_sha256"] == manifest["adapter_sha256"]


@pytest.mark.slow
def test_the_records_are_those_of_a_local_run(toy, remote, tmp_path):
    """Bytes, tokens, losses, weights: all but the time, and what is judged."""
    run = api.run(api.load(toy, [ONLY]), tmp_path / "local")
    remote.go(api.load(toy, [REMOTE]))
    read = lambda name: [json.loads(line) for line in (run.path / f"{name}.jsonl").read_text().splitlines()]  # noqa: E731
    for mine, theirs in zip(remote.records(), read("metrics"), strict=True):
        kept = theirs.keys() - {"seconds", "peak_memory_bytes"}
        assert {k: mine[k] for k in kept} == {k: theirs[k] for k in kept}
    mine, theirs = remote.records("clients"), read("clients")
    assert [r for r in mine if "status" in r] == [r for r in theirs if "status" in r]
    judged = {(r["round"], r["client"]): r for r in theirs if "status" not in r}
    assert len(judged) == 2 * len(FEW)
    for record in (r for r in mine if "status" not in r):
        other = judged[record["round"], record["client"]]
        assert record["rows"] == other["rows"] and record.keys() == other.keys()
        assert record["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-5)


def test_what_is_judged_is_the_mean_over_rows(toy, remote):
    remote.go(api.load(toy, [REMOTE]))
    last, own = remote.records()[-1], [r for r in remote.records("clients") if r.get("evaluated") and r["round"] == 2]
    rows = np.array([r["rows"] for r in own])
    assert len(set(rows)) > 1
    for name in ("eval_loss", "eval_accuracy", "eval_macro_f1"):
        values = np.array([r[name] for r in own])
        assert last[name] == pytest.approx(float((rows * values).sum() / rows.sum()), abs=1e-12)
        assert values.std() > 0


def test_the_vector_is_stored_and_fetched_once_a_round(toy, remote):
    """Whether it is judged or trained on, and whoever asks; and one update at a time is fetched, never a larger one."""
    remote.go(api.load(toy, [REMOTE]))
    down = [key for key in remote.broker.puts if key.startswith("run-1.")]
    assert len(set(down)) == 4  # the experiment, and versions 0, 1 and 2
    assert {line["kind"]: line["bytes_received"] > 0 for line in remote.lines["north"] if line["round"] == 1} == {
        "train": False, "evaluate": True,
    }  # fmt: skip
    sizes = {size for _, size in remote.broker.fetched}
    assert len(remote.broker.fetched) == 8 and len(sizes) == 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.held_out=0.1"], "data.held_out: 0"),
        (["data.unseen_clients=0.2"], "data.unseen_clients"),
        (["data.partition={kind: iid, clients: 8}"], "kind: column"),
        (["data.partition={kind: column, column: site, clients: 4}"], "kind: column"),
        (["data.labels={}"], "data.labels"),
        (["federation.weighting={kind: episodes, column: site}"], "samples, tokens, steps or uniform"),
        (["federation.weighting=sites:weigh"], "samples, tokens, steps or uniform"),
        (["federation.yardsticks=[local]"], "federation.yardsticks"),
        (["algorithm=central"], "federated algorithm"),
        (["local.grouping=grouped"], "in_place"),
        (["data.held_out=0.2", 'layers={"kind": "priority", "seen_by": "held_out"}'], "seen_by: clients"),
        (["data.held_out=0.2", "algorithm=fedgpl"], "no rows of its own to score layers"),
    ],
)
def test_what_needs_rows_is_refused_in_the_file(overrides, said, toy):
    with pytest.raises(ConfigError, match=said):
        api.load(toy, [REMOTE, *overrides])


def test_all_that_is_refused_is_said_at_once(toy):
    toy.write_text(toy.read_text().replace("held_out: 0", "unseen_clients: 0.2"))  # the default share is held out
    with pytest.raises(ConfigError) as caught:
        api.load(toy, [REMOTE])
    assert "Set data.held_out: 0;" in str(caught.value) and "data.unseen_clients" in str(caught.value)


def test_the_first_rows_of_all_are_refused_before_anyone_is_asked(toy):
    broker = Broker()
    with pytest.raises(UsageError, match=r"data\.limit"):
        prepare_remote(api.load(toy, [REMOTE, "data.limit=100"]), CoordinatorLink(broker), "run-1", FEW)
    assert not broker.puts and not broker.waiting


def test_nobody_online_is_an_error_in_a_bounded_time(toy):
    with pytest.raises(
        RunError, match=r"no client is online, after 0\.05 seconds; the federation has 4: .*fedloom join"
    ):
        prepare_remote(api.load(toy, [engine(round_deadline=1)]), CoordinatorLink(Broker()), "run-1", FEW)


def test_the_standin_gives_what_a_local_run_gives(toy, remote):
    experiment = api.load(toy, [REMOTE, "federation.weighting=tokens"])
    _, prepared = remote.prepare(experiment)
    here = prepare_data(api.load(toy, [ONLY]))
    assert list(prepared.train.clients) == list(here.train.clients)
    for k in range(len(FEW)):
        rows, own = here.train.rows(k), prepared.train.rows(k)
        assert len(own) == len(rows) and len(prepared.validation.rows(k)) == len(here.validation.rows(k))
        assert prepared.table.lengths[own].sum() == here.table.lengths[rows].sum()
        assert steps_of(len(own), experiment.local) == steps_of(len(rows), experiment.local)
    assert isinstance(prepared.table, StandIn) and len(prepared.table) == len(here.table)
    again = prepare_again(experiment, json.loads(json.dumps(prepared.record)))
    assert again.table.digest == prepared.table.digest and again.train.digest == prepared.train.digest
    assert again.base == prepared.base and again.run == "run-1"


ONLY = "data.where=" + json.dumps({"site": list(FEW)})


def over(toy, out, sites, rounds=1, algorithm="fedavg"):
    """The vector of a local run over some of the sites alone."""
    overrides = [
        f"algorithm={algorithm}",
        f"federation.rounds={rounds}",
        "data.where=" + json.dumps({"site": list(sites)}),
    ]
    return local_run(toy, [ONLY, *overrides], out)[1]


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


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed(toy, remote, tmp_path):
    experiment = api.load(toy, [REMOTE, "federation.rounds=3"])
    seen = []
    remote.go(experiment, listeners=[lambda _, record: seen.append(record)], stop_asked=lambda: len(seen) > 2)
    assert not remote.finished and remote.records()[-1]["round"] == 2
    remote.go(experiment, again=True)
    assert remote.finished and same(remote.w, local_run(toy, [ONLY, "federation.rounds=3"], tmp_path / "local")[1])


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
