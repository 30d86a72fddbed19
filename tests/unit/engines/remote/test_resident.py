"""A resident client by itself: what it agrees to, what it keeps, what it tells its owner, and what it computes again."""

from __future__ import annotations

import json
import sys
from collections import Counter

import pytest
import torch
from memory_link import Broker, CoordinatorLink, NodeLink
from remote_toy import REMOTE, Remote, same, site_of

from fedloom import api
from fedloom.config.site import Site
from fedloom.engines.group import Assignment
from fedloom.engines.remote import resident as resident_module
from fedloom.engines.remote.engine import RemoteEngine
from fedloom.engines.remote.link import Ask, Unreachable
from fedloom.engines.remote.messages import Open, spell
from fedloom.engines.remote.resident import LOG
from fedloom.engines.remote.standin import prepare_remote
from fedloom.errors import RunError
from fedloom.local.store import ClientStore
from fedloom.models import load as load_module

NAME = "lake"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    made = Remote(tmp_path, Broker(), monkeypatch, (NAME,))
    with made.crew:
        made.crew.join(NAME)
        yield made


class Opened:
    """A run that one client has opened, and that is driven by hand from there."""

    def __init__(self, remote, toy, *overrides, run="run-1"):
        self.remote, self.run = remote, run
        remote.crew.working.add(NAME)
        self.link, self.prepared = remote.prepare(api.load(toy, [REMOTE, *overrides]), run)
        remote.crew.working.clear()  # from here on asks are handled by the test
        self.engine = RemoteEngine(self.prepared, ClientStore(remote.folder / f"server-{run}"), self.link)

    @property
    def node(self):
        return self.remote.crew.nodes[NAME]

    def revive(self):
        """The client dies, and comes back with what is on its disk."""
        self.remote.crew.leave(NAME)
        self.remote.crew.join(NAME)
        self.remote.crew.working.clear()

    def ask(self, round, **more):
        """What the engine asks the client to train in a round."""
        work = Assignment(round, self.prepared.initial + round / 8, 1.0, **more)
        return self.engine._asks(work, [0])[0]

    def answer(self, ask):
        """The client's answer, and its content."""
        self.link.ask([ask])
        self.node.handle(ask)
        answer = self.remote.broker.log.pop(ask.digest)
        return answer, None if answer.content is None else self.remote.broker.blobs[answer.content.key]


@pytest.fixture
def trainings(monkeypatch):
    """How often it has trained, by round."""
    honest, count = resident_module.train_group, Counter()

    def counted(prepared, store, trainer, work, clients):
        count[work.round] += 1
        return honest(prepared, store, trainer, work, clients)

    monkeypatch.setattr(resident_module, "train_group", counted)
    return count


def test_a_repeated_ask_is_answered_from_what_was_kept(remote, toy, trainings):
    run = Opened(remote, toy)
    ask = run.ask(1)
    first, content = run.answer(ask)
    run.revive()
    again, same_content = run.answer(ask)
    assert trainings == {1: 1} and content == same_content and first == again
    damaged = remote.folder / "homes" / NAME / "runs" / "run-1" / "answer.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert run.answer(ask)[1] == content and trainings == {1: 2}


def test_an_older_round_is_computed_again_from_the_state_of_its_time(remote, toy, trainings):
    run = Opened(remote, toy, "algorithm=fedper")
    asks = [run.ask(round) for round in (1, 2, 3)]
    contents = [run.answer(ask)[1] for ask in asks]
    run.revive()
    assert run.answer(asks[1])[1] == contents[1] and trainings == {1: 1, 2: 2, 3: 1}
    assert len(set(contents)) == 3


def test_the_same_round_with_another_vector_is_another_ask(remote, toy, trainings):
    run = Opened(remote, toy)
    ask = run.ask(1)
    other = run.ask(1, layers=torch.arange(run.prepared.binding.layout.n) % 2 == 0)
    assert ask.id == other.id and run.answer(ask)[1] != run.answer(other)[1] and trainings == {1: 2}


def test_a_round_that_did_not_join_is_forgotten(remote, toy):
    """Its state, and the answer that was kept: what comes after is as if the client had not been asked."""
    run = Opened(remote, toy, "algorithm=fedper")
    run.answer(run.ask(1))
    kept = ClientStore(remote.folder / "homes" / NAME / "runs" / "run-1" / "clients")
    one, asked = kept.load(NAME, 2), run.ask(2)
    run.answer(asked)
    run.engine._asking.settle(0, 2, joined=False)
    third = run.answer(run.ask(3))[1]
    assert kept.load(NAME, 3).keys() == one.keys() and all(same(one[k], v) for k, v in kept.load(NAME, 3).items())
    other = Opened(remote, toy, "algorithm=fedper", run="run-2")
    other.answer(other.ask(1))
    assert other.answer(other.ask(3))[1] == third


def test_what_was_withdrawn_while_it_trained_leaves_nothing(remote, toy, monkeypatch):
    run = Opened(remote, toy, "algorithm=fedper")
    ask, honest = run.ask(1), resident_module.train_group

    def withdrawn(*args):
        run.link.cancel([ask])
        return honest(*args)

    monkeypatch.setattr(resident_module, "train_group", withdrawn)
    run.link.ask([ask])
    run.node.handle(ask)
    folder = remote.folder / "homes" / NAME / "runs" / "run-1"
    assert ask.digest not in remote.broker.log and not remote.broker.refused
    assert ClientStore(folder / "clients").load(NAME, 9) is None and not (folder / "answer.json").exists()


def test_a_run_it_has_not_opened_is_a_failure(remote, toy):
    run = Opened(remote, toy)
    answer, _ = run.answer(run.ask(1).model_copy(update={"run": "run-9"}))
    assert answer.status == "failed" and "has not opened the run 'run-9'" in answer.reason


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "run.1", "x" * 65])
def test_a_name_of_a_run_is_never_a_path(name, remote, toy):
    run = Opened(remote, toy)
    answer, _ = run.answer(run.ask(1).model_copy(update={"run": name}))
    assert answer.status == "refused" and "no name of a run" in answer.reason
    assert [p.name for p in (remote.folder / "homes" / NAME / "runs").iterdir()] == ["run-1"]


def test_an_ask_to_another_client_is_refused(remote, toy):
    run = Opened(remote, toy)
    ask = run.ask(1).model_copy(update={"client": "north"})
    run.node.handle(ask)
    assert remote.broker.log[ask.digest].status == "refused"


def test_the_model_is_loaded_once(remote, toy, monkeypatch):
    """Across rounds, and across runs that learn the same of the same base model, from the same first vector."""
    honest, loads = load_module.load_model, []
    monkeypatch.setattr("fedloom.local.prepare.load_model", lambda *a, **k: loads.append(1) or honest(*a, **k))
    run = Opened(remote, toy, "algorithm=fedex_lora")
    first = run.answer(run.ask(1))[1]
    before = len(loads)  # the coordinator's and the client's
    other = Opened(remote, toy, "algorithm=fedyogi", run="run-2")
    assert other.answer(other.ask(1))[1][200:] == first[200:]
    assert before == 2 and len(loads) == 3  # and the coordinator's again
    again = Opened(remote, toy, "adapter.r=2", run="run-3")
    assert again.answer(again.ask(1))[0].status == "ok" and len(loads) == 5


def test_the_owner_reads_what_left(remote, toy):
    run = Opened(remote, toy)
    answer, content = run.answer(run.ask(1))
    lines = [json.loads(line) for line in (remote.folder / "homes" / NAME / LOG).read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["open", "train"] and lines == remote.lines[NAME]
    opened, train = lines
    assert opened["facts"] == {"rows": 160, "tokens": opened["facts"]["tokens"], "validation": 40}
    assert train["bytes_sent"] == len(content) and train["bytes_received"] > 4 * run.prepared.binding.layout.n
    assert train["samples"] == 48 and train["loss"] > 0 and train["status"] == answer.status == "ok"
    assert (
        train["tensors"]["delta"]["shape"] == [run.prepared.binding.layout.n] and train["tensors"]["delta"]["norm"] > 0
    )


@pytest.mark.parametrize(
    ("accept", "said"),
    [
        ({"tasks": ["causal_lm"]}, "does not take part in the task 'classification'"),
        ({"base_models": ["0" * 32]}, "does not train on the base model"),
        ({"max_rounds": 1}, "2 rounds are more than this client's 1"),
        ({"max_steps": 5}, "6 steps a round are more than this client's 5"),
        ({"code": []}, "'sites:model' is code that this client does not run"),
    ],
)
def test_what_the_owner_has_not_agreed_to_is_refused(accept, said, remote, toy):
    site = site_of(NAME)
    remote.make_site = lambda name: site.model_copy(update={"accept": site.accept.model_copy(update=accept)})
    remote.crew.leave(NAME)
    remote.crew.join(NAME)
    with pytest.raises(RunError, match=said):
        remote.prepare(api.load(toy, [REMOTE]))


def test_a_round_of_too_few_is_refused(remote, toy):
    run = Opened(remote, toy)
    run.node._site = Site(data=run.node._site.data, accept=run.node._site.accept.model_copy(update={"min_cohort": 2}))
    answer, content = run.answer(run.ask(1))
    assert answer.status == "refused" and "1 clients a round are fewer than the 2" in answer.reason and content is None


@pytest.mark.parametrize(
    "place",
    ["model.path", "model.task", "algorithm.name", "algorithm.with", "federation.weighting", "data.source"],
)
def test_code_that_an_experiment_names_is_never_imported(place, remote, toy):
    """`module:attribute` in the coordinator's text would run anything that is installed here, with arguments of its choice."""
    run = Opened(remote, toy)
    text = (remote.folder / "homes" / NAME / "runs" / "run-1" / "experiment.yaml").read_text()
    from ruamel.yaml import YAML

    data = YAML(typ="safe", pure=True).load(text)
    section, _, key = place.partition(".")
    data[section][key] = "evil_module:run" if key != "with" else [{"name": "evil_module:run"}]
    (remote.folder / "evil_module.py").write_text("raise SystemExit('imported')\ndef run(*a): ...\n")
    blob = run.link.put("text", json.dumps(data).encode())
    facts = spell(Open(base=run.prepared.base, layout=run.prepared.binding.layout.digest))
    ask = Ask(run="run-7", round=0, kind="open", client=NAME, facts=facts, blobs={"experiment": blob})
    answer, _ = run.answer(ask)
    assert answer.status == "refused" and "evil_module:run" in answer.reason and "does not run" in answer.reason
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {"text": "words", "label": "subject"}}, "there is no column 'subject' for the field 'label'"),
        ({"fields": {"label": "topic"}}, "there is no column 'text'"),
        ({"source": "nowhere.jsonl"}, "there is no file or folder 'nowhere.jsonl'"),
        ({"labels": {"music": "music"}}, "no value stands for the label"),
        ({"labels": {"a": "sport"}}, "the experiment has no label 'sport'"),
        ({"where": {"colour": "red"}}, "colour"),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_the_reason(changes, said, remote, toy):
    site = site_of(NAME)
    remote.make_site = lambda name: site.model_copy(update={"data": site.data.model_copy(update=changes)})
    remote.crew.leave(NAME)
    remote.crew.join(NAME)
    with pytest.raises(RunError, match=said):
        remote.prepare(api.load(toy, [REMOTE]))


def test_another_base_model_is_refused(remote, toy):
    link = CoordinatorLink(remote.broker)
    other = toy.parent / "other"
    other.mkdir()
    (other / "sites.py").write_text((toy.parent / "sites.py").read_text().replace("manual_seed(0)", "manual_seed(1)"))
    (other / "toy.yaml").write_text(toy.read_text())
    with pytest.raises(
        RunError, match=r"lake: model.path: the base model is another one\. This client's has the fingerprint"
    ):
        prepare_remote(api.load(other / "toy.yaml", [REMOTE]), link, "run-1", [NAME])


def test_labels_of_its_own_are_the_experiments_in_its_order(remote, toy):
    rows = [json.loads(line) for line in (toy.parent / f"{NAME}.jsonl").read_text().splitlines()]
    codes = {"weather": "3", "traffic": "9", "music": "5", "harvest": "7"}
    text = "".join(json.dumps(row | {"topic": codes[row["topic"]]}) + "\n" for row in rows)
    plain = Opened(remote, toy)
    content = plain.answer(plain.ask(1))[1]
    (toy.parent / f"{NAME}.jsonl").write_text(text)
    own = site_of(NAME).data.model_copy(update={"labels": {code: name for name, code in codes.items()}})
    remote.make_site = lambda name: site_of(name).model_copy(update={"data": own})
    remote.crew.leave(NAME)
    remote.crew.join(NAME)
    coded = Opened(remote, toy, run="run-2")
    assert coded.answer(coded.ask(1))[1] == content


def test_rows_that_have_changed_since_the_run_began_are_refused(remote, toy):
    run = Opened(remote, toy)
    path = toy.parent / f"{NAME}.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[1], lines[0], *lines[2:]]))
    run.revive()
    (opening,) = [a for a in [*remote.broker.log.values()] if a.id == "run-1.0.open.0"]
    assert opening.status == "ok"
    remote.crew.working.add(NAME)
    with pytest.raises(RunError, match="the rows are not what they were when this run began"):
        remote.broker.log.clear()
        remote.prepare(api.load(toy, [REMOTE]))


def test_a_run_that_is_over_is_let_go(remote, toy):
    run = Opened(remote, toy, "algorithm=fedper")
    run.answer(run.ask(1))
    run.engine.close(finished=True)
    ask = NodeLink(remote.broker, NAME).next(0)
    assert ask.kind == "close"
    run.node.handle(ask)
    folder = remote.folder / "homes" / NAME / "runs" / "run-1"
    assert not (folder / "answer.json").exists() and not (folder / "answer.bin").exists()
    assert ClientStore(folder / "clients").load(NAME, 9)  # what it learnt for itself stays


def test_it_serves_until_it_is_told_to_stop(remote, toy):
    run = Opened(remote, toy)
    ask = run.ask(1)
    run.link.ask([ask])
    run.node.serve(lambda: ask.digest in remote.broker.log)
    assert remote.broker.log[ask.digest].status == "ok"


def test_a_broker_that_is_away_is_no_failure_of_what_was_asked(remote, toy, monkeypatch):
    def away(*_):
        raise Unreachable("nothing was achieved")

    run = Opened(remote, toy)
    ask = run.ask(1)
    run.link.ask([ask])
    with monkeypatch.context() as patched, pytest.raises(Unreachable):
        patched.setattr(run.node._link, "get", away)
        run.node.handle(ask)
    assert ask.digest not in remote.broker.log
    assert run.answer(ask)[0].status == "ok"


def test_it_knows_how_many_there_are_and_its_own_rank(remote, toy):
    own = Opened(remote, toy).node._opened("run-1").own
    assert len(own.among(8, 2).seen) == 8 and own.among(8, 2).ranks == [2] and own.among(8, None).ranks is None
    assert len(own.prepared.train) == 1
