"""Local training against a slow, readable twin: a plain PyTorch loop over one client at a time with torch.optim."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import CLASSIFIERS, bound
from torch.nn import functional as F

from fedloom.config.schema import Local
from fedloom.local.batches import plan_steps, steps_of
from fedloom.local.group import Group, Member
from fedloom.local.train import Trainer
from fedloom.tasks.causal_lm import CausalLM
from fedloom.tasks.classification import Classification
from fedloom.vector.layout import Layout

RNG = np.random.default_rng(0)
N = 90


class FakeTable:
    """Rows of random tokens, of random lengths, as the Arrow table would give them."""

    columns = ("input_ids", "learnt", "label_id")
    lengths = RNG.integers(3, 12, N)

    def __init__(self) -> None:
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.ids = RNG.integers(1, 96, self.offsets[-1]).astype(np.int32)
        self.learnt = (RNG.random(self.offsets[-1]) < 0.6).astype(np.uint8)
        self.learnt[self.offsets[1:] - 1] = 1
        self.labels = RNG.integers(0, 3, N)

    def ragged(self, name):
        return {"input_ids": self.ids, "learnt": self.learnt}[name], self.offsets

    def column(self, name):
        return self.labels

    def row(self, i):
        part = slice(self.offsets[i], self.offsets[i + 1])
        return torch.from_numpy(self.ids[part].astype(np.int64)), self.learnt[part], int(self.labels[i])


class Tokenizer:
    pad_token_id = 0


def plain(g, w, group):
    """FedAvg's rule."""
    return g


TABLE = FakeTable()
ROWS = [np.arange(0, 37), np.arange(37, 40), np.arange(40, 61), np.arange(61, 90)]


def trainer(name, local, grouped, **options):
    task = Classification if name in CLASSIFIERS else CausalLM
    made = task(Tokenizer(), None, ["a", "b", "c"])
    t = Trainer(bound(name, **options), made, TABLE, local, 0, grouped)
    t.start = t.binding.home.values.clone()  # training in place leaves its rows behind
    return t


def members(local):
    made = [
        Member(f"c{k}", plan_steps(r, TABLE.lengths, local, seed=0, round=1, client=f"c{k}"), r)
        for k, r in enumerate(ROWS)
    ]
    return sorted(made, key=lambda m: -len(m.steps))


def open_group(t, local, who=None, rows=None, **options):
    who = who or members(local)
    rows = t.start.expand(len(who), -1) if rows is None else rows
    return Group(trainer=t, members=who, anchor=rows.clone(), round=1, **options)


def run(t, local, rule=plain, **options):
    group = open_group(t, local)
    trained = group.train(group.anchor, rule, **options)
    return group.anchor[0], trained, group.members


def twin(name, local, steps, w):
    """One client, one example at a time, torch.optim, no padding, no grouping, no masks but the mathematics."""
    binding = bound(name)
    binding.load(w)
    model = binding.model
    params = [p for p in model.parameters() if p.requires_grad]
    assert Layout.of([(n, p) for n, p in model.named_parameters() if p.requires_grad]).n == len(w)
    made = {
        "sgd": lambda: torch.optim.SGD(params, lr=local.lr, momentum=local.momentum),
        "adamw": lambda: torch.optim.AdamW(params, lr=local.lr, weight_decay=local.weight_decay),
    }[local.optimizer]()
    for step in steps:
        rows = np.concatenate(step)
        total, items = 0.0, 0
        for i in rows:
            ids, learnt, label = TABLE.row(i)
            logits = model(input_ids=ids[None], attention_mask=torch.ones(1, len(ids))).logits
            if logits.dim() == 2:
                total, items = total + F.cross_entropy(logits, torch.tensor([label]), reduction="sum"), items + 1
                continue
            keep = torch.from_numpy(learnt[1:]).bool()
            total = total + F.cross_entropy(logits[0, :-1][keep], ids[1:][keep], reduction="sum")
            items += int(keep.sum())
        made.zero_grad(set_to_none=False)
        (total / max(items, 1)).backward()
        if local.clip:
            torch.nn.utils.clip_grad_norm_(params, local.clip)
        made.step()
    return torch.cat([p.detach().reshape(-1) for p in params])


LOCALS = {
    "sgd": Local(optimizer="sgd", lr=0.1, steps=3, batch_size=4),
    "momentum, epochs, ragged": Local(optimizer="sgd", lr=0.05, momentum=0.9, epochs=1, batch_size=5),
    "adamw, clip": Local(optimizer="adamw", lr=0.01, weight_decay=0.1, clip=0.05, steps=3, batch_size=4),
    "accumulate": Local(optimizer="sgd", lr=0.1, steps=2, batch_size=3, accumulate=3),
}


@pytest.mark.parametrize("case", LOCALS)
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_equals_the_plain_loop(case, grouped, name):
    local = LOCALS[case]
    start, trained, who = run(trainer(name, local, grouped), local)
    for k, member in enumerate(who):
        expected = twin(name, local, member.steps, start)
        assert (expected - start).abs().max() > 1e-4
        # Adam divides by the gradient's own size, so it magnifies rounding where gradients are tiny.
        atol = 5e-5 if local.optimizer == "adamw" else 1e-5
        torch.testing.assert_close(trained[k], expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["qwen2", "roberta", "llama-cls"])
def test_grouped_equals_in_place_with_dropout_on_ragged_clients(name):
    local = Local(optimizer="sgd", lr=0.05, epochs=1, batch_size=4)
    options = {"dropout": 0.3, "base_dropout": True}
    _, a, left = run(trainer(name, local, True, **options), local)
    start, b, right = run(trainer(name, local, False, **options), local)
    _, without, _ = run(trainer(name, local, True), local)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert (a - without).abs().max() > 1e-4 < (a - start).abs().max()
    assert [m.tokens for m in left] == [m.tokens for m in right] == [int(TABLE.lengths[m.rows].sum()) for m in left]
    assert [m.loss for m in left] == pytest.approx([m.loss for m in right], rel=1e-4)


def test_accumulation_is_one_big_batch():
    """Three batches of three weigh every token alike, as one batch of nine does, though their token counts differ."""
    small = Local(optimizer="sgd", lr=0.1, steps=2, batch_size=3, accumulate=3)
    big = Local(optimizer="sgd", lr=0.1, steps=2, batch_size=9)
    _, a, _ = run(trainer("llama", small, True), small)
    _, b, _ = run(trainer("llama", big, True), big)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_inputs_are_untouched():
    local = LOCALS["adamw, clip"]
    group = open_group(trainer("llama", local, True), local)
    before = group.anchor.clone()
    group.train(group.anchor, plain)
    assert torch.equal(group.anchor, before)


def test_kept_optimizer_state_goes_on():
    """Two rounds of two steps that keep Adam's averages are four steps in one round."""
    local = Local(optimizer="adamw", lr=0.01, steps=4, batch_size=4)
    t, who = trainer("llama", local, True), members(local)
    whole = run(t, local)[1]
    first, second = [replace(m, steps=m.steps[:2]) for m in who], [replace(m, steps=m.steps[2:]) for m in who]
    group = open_group(t, local, first)
    half = group.train(group.anchor, plain)
    kept = open_group(t, local, second, half, memory=group.memory).train(half, plain)
    fresh = open_group(t, local, second, half).train(half, plain)
    torch.testing.assert_close(kept, whole, rtol=0, atol=1e-6)
    assert (fresh - whole).abs().max() > 1e-3


@pytest.mark.parametrize("grouped", [True, False])
def test_only_the_chosen_entries_move(grouped):
    """Weight decay and momentum would move the others too, and their gradients would count in the clipped norm."""
    local = Local(optimizer="adamw", lr=0.01, weight_decay=0.1, clip=0.05, epochs=1, batch_size=4)
    t = trainer("bert", local, grouped)
    chosen = t.binding.layout.mask(lambda s: s.role == "lora_B")
    start, trained, _ = run(t, local, only=chosen)
    assert torch.equal(trained[:, ~chosen], start[~chosen].expand(4, -1))
    assert ((trained - start)[:, chosen].abs().amax(1) > 1e-4).all()
    assert (trained - run(t, local)[1])[:, chosen].abs().max() > 1e-5


@pytest.mark.parametrize("grouped", [True, False])
def test_steps_go_round_the_batches(grouped):
    """Seven steps over three batches are those three, again, and the first."""
    local = Local(optimizer="sgd", lr=0.1, steps=3, batch_size=4)
    t, who = trainer("llama", local, grouped), members(local)
    longer = [replace(m, steps=[m.steps[i % 3] for i in range(7)]) for m in who]
    group = open_group(t, local, longer)
    torch.testing.assert_close(run(t, local, steps=7)[1], group.train(group.anchor, plain), rtol=0, atol=1e-6)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_gradient_elsewhere_on_the_batch_of_the_step(grouped):
    """At the present rows it is the step's gradient, one step ahead the next one's; asking changes nothing in the training."""
    local = Local(optimizer="sgd", lr=0.1, epochs=1, batch_size=5)
    t, seen = trainer("bert", local, grouped), []

    def rule(g, w, group):
        assert (group.anchor.shape, len(group)) == (w.shape, len(w))
        torch.testing.assert_close(group.at(w), g, rtol=0, atol=1e-6)
        seen.append((group.members[0].client, g[0].clone(), group.at(group.anchor[: len(w)], ahead=1)[0]))
        return g

    _, watched, _ = run(t, local, rule)
    torch.testing.assert_close(watched, run(t, local)[1], rtol=0, atol=1e-6)
    first = [entry for entry in seen if entry[0] == seen[0][0]]
    alone = replace(members(local)[0], steps=members(local)[0].steps[1:2])
    group, second = open_group(t, local, [alone]), []
    group.train(group.anchor, lambda g, w, _: second.append(g.clone()) or g)
    torch.testing.assert_close(first[0][2], second[0][0], rtol=0, atol=1e-6)
    assert (first[0][1] - first[0][2]).abs().max() > 1e-3


@pytest.mark.parametrize("grouped", [True, False])
def test_losses_and_gradients_over_all_rows(grouped):
    """They are those of one batch that holds all of a client's rows."""
    local = Local(optimizer="sgd", lr=0.1, epochs=1, batch_size=5)
    whole = Local(optimizer="sgd", lr=0.1, epochs=1, batch_size=100)
    t = trainer("llama", local, grouped)
    group, seen = open_group(t, local), {}
    losses, gradients = group.losses(group.anchor), group.gradients(group.anchor)
    for k, member in enumerate(group.members):
        alone = [Member(member.client, plan_steps(member.rows, TABLE.lengths, whole, seed=0, round=1, client="x"))]
        big = open_group(trainer("llama", whole, grouped), whole, alone)
        big.train(big.anchor, lambda g, w, _, name=member.client: seen.update({name: g.clone()}) or g)
        assert losses[k].item() == pytest.approx(alone[0].loss, rel=1e-5)
        torch.testing.assert_close(gradients[k], seen[member.client][0], rtol=0, atol=1e-6)


def test_plans_cover_every_row_once_an_epoch():
    local = Local(epochs=3, batch_size=4, accumulate=2)
    plan = plan_steps(ROWS[0], TABLE.lengths, local, seed=0, round=1, client="x")
    assert len(plan) == steps_of(len(ROWS[0]), local) == 15
    for epoch in range(3):
        rows = np.concatenate([part for step in plan[5 * epoch : 5 * epoch + 5] for part in step])
        assert sorted(rows) == list(ROWS[0])
    assert {len(part) for step in plan for part in step} <= {4, 1} and max(map(len, plan)) == 2


def test_plans_repeat_by_key_alone():
    local = Local(steps=5, batch_size=4)

    def flat(**key):
        parts = plan_steps(ROWS[0], TABLE.lengths, local, **({"seed": 0, "round": 1, "client": "x"} | key))
        return [int(r) for step in parts for part in step for r in part]

    assert flat() == flat()
    assert len({tuple(flat(**k)) for k in ({}, {"seed": 1}, {"round": 2}, {"client": "y"})}) == 4


def test_a_small_client_never_repeats_a_row_in_a_batch():
    local = Local(steps=6, batch_size=8)
    for step in plan_steps(ROWS[1], TABLE.lengths, local, seed=0, round=1, client="x"):
        assert sorted(np.concatenate(step)) == list(ROWS[1])


def test_batches_hold_rows_of_like_length():
    local = Local(epochs=1, batch_size=8)
    rows = np.arange(N)
    plan = plan_steps(rows, TABLE.lengths, local, seed=0, round=1, client="x")
    padded = sum(len(p) * int(TABLE.lengths[p].max()) for step in plan for p in step)
    shuffled = np.random.default_rng(1).permutation(rows).reshape(-1, 9)
    assert padded < 0.9 * sum(9 * int(TABLE.lengths[p].max()) for p in shuffled)


def test_losses_only_where_there_are_labels():
    """The head sees as many positions as there are learnt tokens, not the padded batch."""
    t = trainer("llama", LOCALS["sgd"], False)
    seen = []
    t.binding.model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.append(o.shape[0]))
    batch = t.task.collate(TABLE, [ROWS[0][:6]])
    t.task.losses(t.binding.model, batch)
    assert seen == [sum(batch.items)] and seen[0] < batch.inputs["input_ids"].numel() / 2 + 20


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", ["llama", sorted(CLASSIFIERS)[0]])
def test_squares_are_those_of_single_samples(name, grouped):
    """Of the step's own rows, none of them padding, each with its mean loss; and training is what it is without them."""
    local = Local(optimizer="sgd", lr=0.05, steps=1, batch_size=8)
    t = trainer(name, local, grouped)
    expected = {}
    for member in members(local):
        rows = [int(r) for part in member.steps[0] for r in part]
        with torch.no_grad():
            each = [t.task.measure(t.binding.model, t.task.collate(TABLE, [np.array([r])])) for r in rows]
        expected[member.client] = sum(float(m["loss"][0] / m["items"][0]) ** 2 for m in each)
    plain_rows = open_group(t, local).train(t.start.expand(4, -1), plain)
    watching = trainer(name, local, grouped)
    watching.sample_losses = True
    group = open_group(watching, local)
    torch.testing.assert_close(group.train(t.start.expand(4, -1), plain), plain_rows, rtol=0, atol=1e-6)
    assert {m.client: m.squares for m in group.members} == pytest.approx(expected, rel=1e-4)
