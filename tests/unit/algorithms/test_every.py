"""What must hold for every algorithm of the index: a new file cannot forget its proofs.

`proofs/NAME.py` holds what is particular: `hand` (a step computed by hand from the paper), `identity` (the case in which it is
another method), `SPEC` (options with which it must differ from FedAvg) and, where the paper claims one, a `property`.
"""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy

from fedloom import algorithms
from fedloom.algorithms import ALGORITHMS
from fedloom.data.partition import Partition
from fedloom.engines.work import planned_work
from fedloom.federation import Federation
from fedloom.local.opening import open_group
from fedloom.local.prepare import Prepared
from fedloom.local.train import make_trainer
from fedloom.tracking.rundir import RunDir

NAMES = list(ALGORITHMS)


def proof(name):
    return import_module(f"proofs.{name}")


def toy_of(name, spec=None, **sections) -> Prepared:
    """The toy on which a method's generic tests run."""
    own = proof(name)
    build = getattr(own, "TOY", lambda spec, **s: toy.factors(spec, **({"local": {"steps": 3}} | s)))
    return build(spec or own.SPEC or name, **sections)


def outcome(federation: Federation) -> torch.Tensor:
    """The server's vector, and where the method is personal the vector each client is judged with."""
    prepared, progress = federation.prepared, federation.progress
    found = [progress.w]
    if prepared.algorithm.personal:
        trainer = make_trainer(prepared, grouped=False)
        beside = prepared.algorithm.broadcast(progress.w, progress.server)
        for k in range(len(prepared.train)):
            group, _ = open_group(
                prepared, federation.store, trainer, [k], progress.w, beside,
                round=progress.round, before=progress.round + 1,
            )  # fmt: skip
            found.append(prepared.algorithm.judged(group)[0])
    else:
        found += [progress.w] * len(prepared.train)
    return torch.cat(found)


def run(prepared, folder, rounds=2, **sections):
    return outcome(toy.federate(prepared, folder, rounds, **sections))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_by_hand(name, tmp_path):
    proof(name).hand(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_degenerate_case(name, tmp_path):
    proof(name).identity(tmp_path)


@pytest.mark.parametrize("name", [n for n in NAMES if hasattr(proof(n), "property")])
def test_what_the_paper_claims(name, tmp_path):
    proof(name).property(tmp_path)


@pytest.mark.parametrize("name", [n for n in NAMES if proof(n).SPEC is not None])
def test_it_differs_from_fedavg(name, tmp_path):
    own, plain = run(toy_of(name), tmp_path / "a"), run(toy_of(name, {"name": "fedavg"}), tmp_path / "b")
    n = toy_of(name).binding.layout.n
    assert (own[:n] - plain[:n]).abs().max() > 1e-5 or (own.shape == plain.shape and (own - plain).abs().max() > 1e-5)


def test_only_those_that_are_fedavg_by_definition_have_no_spec():
    assert [n for n in NAMES if proof(n).SPEC is None] == ["fedavg", "fedit"]


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(name, tmp_path):
    """The mean over clients of the loss on their own rows falls."""
    federation = toy.federate(toy_of(name), tmp_path, 4, evaluation={"clients_every": 1})
    lines = (federation.run_dir.path / "clients.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record.get("evaluated") == "own"]
    losses = [np.mean([r["eval_loss"] for r in records if r["round"] == number]) for number in range(5)]
    assert min(losses[1:]) < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_devices_take_as_long_as_what_is_done(name, tmp_path):
    """What the virtual clock counts on beforehand is what clients report: passes, and the bytes of their messages."""
    made = toy_of(name)
    federation = toy.federate(made, tmp_path, 0)
    places = {client: k for k, client in enumerate(made.train.clients)}
    for number in (1, 2, 3):
        layers = federation.layers.mask(federation.progress.server, number)
        work = planned_work(made, federation._sent(number - 1), number, layers)
        down, passes, up = (np.broadcast_to(each, len(places)) for each in work)
        federation.round(number)
        lines = (federation.run_dir.path / "clients.jsonl").read_text().splitlines()
        for record in map(json.loads, lines):
            if record["round"] == number and "status" in record:
                k = places[record["client"]]
                assert record["forward_equivalents"] == pytest.approx(passes[k], rel=0.01)
                least = 0 if name == "spry" else up[k] - 64  # whose clients divide the layers between them
                assert least <= record["bytes_up"] <= up[k] + 64
        own = json.loads((federation.run_dir.path / "metrics.jsonl").read_text().splitlines()[-1])
        asked = len(places) if made.algorithm.listens else own["clients"]
        assert own["bytes_down"] == pytest.approx(down.mean() * asked, abs=64 * asked)


@pytest.mark.parametrize("kind", ["jvp", "central", "forward"])
def test_directions_take_the_passes_that_are_planned(kind, tmp_path):
    made = toy.factors("fedavg", local={"steps": 2, "batch_size": 4, "gradient": {"kind": kind, "directions": 5}})
    federation = toy.federate(made, tmp_path, 0)
    passes = planned_work(made, federation._sent(0), 1, None).passes
    federation.round(1)
    records = map(json.loads, (federation.run_dir.path / "clients.jsonl").read_text().splitlines())
    done = [record["forward_equivalents"] for record in records if "status" in record]
    assert done == passes.tolist() == [8 * (6 if kind == "forward" else 10)] * 4


@pytest.mark.parametrize("name", NAMES)
def test_parts_leave_their_inputs_as_they_were(name, tmp_path):
    prepared = toy_of(name)
    federation = toy.federate(prepared, tmp_path, 1)
    algorithm, progress, layout = prepared.algorithm, federation.progress, prepared.binding.layout
    w, server = progress.w.clone(), {k: v.clone() for k, v in progress.server.items()}
    beside = algorithm.broadcast(w, server)
    group, _ = open_group(
        prepared, federation.store, make_trainer(prepared, grouped=False), range(len(prepared.train)), w, beside,
        round=2, before=2,
    )  # fmt: skip
    anchor = group.anchor.clone()

    def rule(g, w, group):
        before = g.clone(), w.clone()
        found = algorithm.gradient(g, w, group)
        assert torch.equal(g, before[0]) and torch.equal(w, before[1])
        return found

    trained = algorithm.train(group, rule)
    delta, copies = trained - group.anchor, [(trained, trained.clone())]
    copies.append((delta, delta.clone()))
    uploads, _ = algorithm.upload(delta, trained, group)
    fold = algorithm.combine(layout)
    total = fold.empty()
    for k in range(len(group)):
        update = {key: value[k] for key, value in uploads.items()}
        copies += [(value, value.clone()) for value in update.values()]
        total = fold.add(total, update, 1.0 + k, group.anchor[k])
    aggregate = fold.finish(total)
    copies += [(value, value.clone()) for value in aggregate.values()]
    facts = algorithms.base.Round(2, len(group), len(prepared.train), layout, experiment=prepared.experiment)
    step, _ = algorithm.apply(w, aggregate, server, facts)
    assert step.shape == w.shape and torch.isfinite(step).all()
    assert torch.equal(w, progress.w) and torch.equal(group.anchor, anchor)
    assert all(torch.equal(server[k], progress.server[k]) for k in server)
    assert all(torch.equal(now, before) for now, before in copies)


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_clients_changes_nothing(name, tmp_path):
    prepared = toy_of(name)
    if prepared.experiment.layers.kind == "split":
        pytest.skip("the layers are dealt to the clients of a cohort in their order")
    train = prepared.train
    order = list(range(len(train)))[::-1]
    indices = np.concatenate([train.rows(k) for k in order])
    offsets = np.concatenate([[0], np.cumsum(train.sizes[order])])
    turned = Partition([train.clients[k] for k in order], offsets, indices)
    forward = run(prepared, tmp_path / "a")
    backward = run(replace(prepared, train=turned, validation=turned), tmp_path / "b")
    n = prepared.binding.layout.n
    back = torch.cat([backward[:n], *backward[n:].split(n)[::-1]])
    torch.testing.assert_close(back, forward, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_proportions_of_the_weights_count(name, tmp_path, monkeypatch):
    plain = run(toy_of(name), tmp_path / "a")
    import fedloom.engines.group as group

    once = group.client_weight
    monkeypatch.setattr(group, "client_weight", lambda *a: 8.0 * once(*a))
    torch.testing.assert_close(run(toy_of(name), tmp_path / "b"), plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_grouped_and_in_place_agree(name, tmp_path):
    assert toy_of(name).binding.ungroupable is None, "no method gets out of the comparison"
    both = []
    for grouping in ("grouped", "in_place"):
        both.append(run(toy_of(name), tmp_path / grouping, local={"grouping": grouping}))
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-5)


KEEPING = [n for n in NAMES if algorithms.resolve(n, None).private is not algorithms.Algorithm.private]


@pytest.mark.parametrize("name", KEEPING)
def test_a_client_is_judged_with_what_it_keeps(name, tmp_path):
    """Its own entries are those that it stored; the server's never left where they began."""
    done = toy.federate(toy_of(name), tmp_path, 2)
    private, w = done.algorithm.private(done.layout), done.progress.w
    assert torch.equal(w[private], done.prepared.initial[private])
    kept = [done.store.load(client, 3)["private"] for client in done.prepared.train.clients]
    for k, own in enumerate(kept):
        judged = done.evaluator.own(done.progress, k)
        assert torch.equal(judged[private], own) and torch.equal(judged[~private], w[~private])
        assert all((own - other).abs().max() > 1e-4 for other in kept[:k])


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_bytes(name, tmp_path):
    """Killed in round 3, when its clients had kept their new state and its checkpoint was not written yet."""
    whole = run(toy_of(name), tmp_path / "whole", rounds=5)
    halfway = toy.federate(toy_of(name), tmp_path / "half", 3)
    shutil.rmtree(halfway.run_dir.path / "checkpoints" / "round-000003")
    again = Federation(toy_of(name), RunDir.open(halfway.run_dir.path))
    again.progress = again._begin()
    assert again.progress.round == 2
    for number in (3, 4, 5):
        again.round(number)
    again.run_dir.close()
    assert torch.equal(outcome(again), whole)


@pytest.mark.parametrize("name", NAMES)
def test_the_wire_changes_nothing(name, tmp_path):
    plain = run(toy_of(name), tmp_path / "plain")
    wired = run(toy_of(name), tmp_path / "wired", engine={"wire": True})
    assert torch.equal(plain, wired)


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name, tmp_path):
    found = algorithms.resolve(name, tmp_path)
    assert found.title and found.paper and found.__doc__
    assert found.family == "yardsticks" or found.equation
    module = import_module(found.__module__)
    assert module.__doc__ and len(module.__doc__.splitlines()) >= 3, "the formula stands on top"
    with Path(module.__file__).open() as file:
        assert len(file.readlines()) <= 120
    for option, field in found.model_fields.items():
        assert field.description, f"{option} is not explained"


def test_no_line_of_code_knows_two_algorithms():
    """Outside the index, no line names two; comments and docstrings may compare formulas."""
    import tokenize

    words = {n.replace("_", "") for n in NAMES if n not in ("local", "central")}
    found = []
    for path in Path(algorithms.__file__).parents[1].rglob("*.py"):
        if path == Path(algorithms.__file__):
            continue
        with tokenize.open(path) as file:
            lines: dict[int, set[str]] = {}
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NAME and token.string.lower().replace("_", "") in words:
                    lines.setdefault(token.start[0], set()).add(token.string.lower().replace("_", ""))
            found += [f"{path.name}:{line}: {names}" for line, names in lines.items() if len(names) > 1]
    assert found == []


def test_a_composition_refuses_two_of_a_kind():
    made = [algorithms.resolve(n, None) for n in ("fedadam", "fedyogi")]
    assert "both decide the server step" in algorithms.clash(made)
    for alone in ("central", "local", "fedkseed", "decomfl"):
        assert "goes with no other" in algorithms.clash([algorithms.resolve(n, None) for n in ("fedavg", alone)])
    for one, other in (("fedmezo", "spry"), ("fedmezo", "fwdllm"), ("baffle", "spry"), ("fedsgd", "fedmezo")):
        both = [algorithms.resolve(n, None) for n in (one, other)]
        assert "both decide the local steps" in algorithms.clash(both)
    assert algorithms.clash([algorithms.resolve(n, None) for n in ("fedprox", "fedadam")]) is None


def test_a_composition_does_what_both_do(tmp_path):
    """FedProx with FedAdam: the clients' updates are FedProx's, and the server moves them as FedAdam does."""
    both = {"name": "fedprox", "mu": 1.0, "with": [{"name": "fedadam"}]}
    toys = {s: toy.factors(s, local={"steps": 3}) for s in ("fedadam",)}
    composed = toy.factors(both, local={"steps": 3})
    prox = toy.vectors(toy.factors({"name": "fedprox", "mu": 1.0}, local={"steps": 3}), tmp_path / "p", 1)
    w0 = composed.initial
    server = toys["fedadam"].algorithm
    step, _ = server.apply(
        w0, {"delta": prox - w0}, server.server_state(w0, composed.binding.layout), SimpleNamespace()
    )
    torch.testing.assert_close(toy.vectors(composed, tmp_path / "c", 1), w0 + step, rtol=0, atol=1e-6)


def test_the_server_step_comes_after_what_is_made_of_the_messages(tmp_path):
    """BAFFLE's numbers become a step, and FedAdam moves by it: named in either order, it is FedAdam of the same local step."""
    local = {"gradient": {"kind": "central", "directions": 10, "shared": True, "h": 0.01}}
    specs = [
        {"name": "fedadam", "lr": 0.05, "with": [{"name": "baffle"}]},
        {"name": "baffle", "with": [{"name": "fedadam", "lr": 0.05}]},
    ]
    ends = [toy.vectors(toy.factors(spec, local=local), tmp_path, 3) for spec in specs]
    assert torch.equal(*ends)
    plain = toy.vectors(toy.factors({"name": "fedadam", "lr": 0.05}, local=local), tmp_path, 3)
    torch.testing.assert_close(ends[0], plain, rtol=0, atol=1e-4)
    assert (plain - toy.vectors(toy.factors("baffle", local=local), tmp_path, 3)).abs().max() > 1e-2


def test_a_group_is_sorted_by_steps_and_every_row_goes_with_its_client(tmp_path):
    """Clients of 1, 3 and 2 rows, batches of one: the trainer counts on most steps first."""
    made = toy.quadratic([[1.0], [2.0], [3.0]], "ditto", rows=[1, 3, 2], local={"epochs": 1, "batch_size": 1})
    done = toy.federate(made, tmp_path, 1)
    group, order = open_group(
        made, done.store, make_trainer(made, grouped=True), [0, 1, 2], done.progress.w, {}, round=2, before=2
    )
    assert order == [1, 2, 0] and [len(m.steps) for m in group.members] == [3, 2, 1]
    assert [m.client for m in group.members] == ["c1", "c2", "c0"]
    for key, rows in group.state.items():
        for row, member in zip(rows, group.members, strict=True):
            assert torch.equal(row, done.store.load(member.client, 2)[key])
