"""Gradients from directional derivatives, through the trainer, against autograd; grouped against one by one."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from test_train import TABLE, members, open_group, plain, trainer
from toy import factors, federate, quadratic

from fedloom.config.schema import Local
from fedloom.errors import ModelError
from fedloom.local.derivatives import Differences, step_length
from fedloom.local.estimate import ByDirections
from fedloom.local.group import Group
from fedloom.local.passes import Passes
from fedloom.local.train import Trainer, make_trainer
from fedloom.models.prefix import Prefix, find_prefix
from fedloom.vector.directions import DirectionStream, draw

KINDS = ("jvp", "central", "forward")


def local(kind="central", directions=3, **changes):
    settings = {k: changes.pop(k) for k in ("steps", "batch_size", "accumulate", "lr", "epochs") if k in changes}
    settings = {"steps": 1, "batch_size": 4, "lr": 0.05} | settings
    if "epochs" in settings:
        settings.pop("steps")
    return Local(optimizer="sgd", **settings, gradient={"kind": kind, "directions": directions, **changes})


def estimates(t, who=None, only=None, reference=None):
    """What the rule is given in the first step, `[K, n]`, and the group."""
    seen = []
    group = open_group(t, t.local, who, reference=reference)
    group.train(group.anchor, lambda g, w, _: seen.append(g.clone()) or g, only=only)
    return torch.cat(seen), group


def records(run):
    return [json.loads(line) for line in (run.run_dir.path / "metrics.jsonl").read_text().splitlines()]


def gradient(t, **options):
    exact = replace(t, local=t.local.model_copy(update={"gradient": Local(steps=1).gradient}))
    exact.start = t.start
    return estimates(exact, **options)[0]


def drawn(t, group, k, count, **options):
    stream = DirectionStream(t.seed, "directions", group.round, group.members[k].client, 0)
    return draw(t.binding.layout, stream, count, **options)[0]


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "roberta", "llama-cls"])
def test_derivatives_are_those_of_autograd(name, grouped):
    """jvp exactly, differences to their order: s_k = <g, v_k> for every client and direction."""
    t = trainer(name, local("jvp"), grouped)
    g, (_, group) = gradient(t), estimates(t)
    for k, member in enumerate(group.members):
        v = drawn(t, group, k, 3)
        scale = g[k].norm() * v.norm(dim=1)
        assert ((member.derivatives[0] - v @ g[k]).abs() / scale).max() < 1e-5
    for kind, within in (("central", 1e-2), ("forward", 0.2)):
        group = estimates(trainer(name, local(kind), grouped))[1]
        for k, member in enumerate(group.members):
            v = drawn(t, group, k, 3)
            assert ((member.derivatives[0] - v @ g[k]).abs() / g[k].norm()).max() < within


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_in_place(kind):
    """Over ragged clients, several micro-batches a step, and passes of more and of fewer rows."""
    settings = local(kind, 5, epochs=1, batch_size=3, accumulate=2, lr=0.01)
    grouped, alone = (trainer("bert", settings, way) for way in (True, False))
    left, right = (open_group(t, settings) for t in (grouped, alone))
    a, b = left.train(left.anchor, plain), right.train(right.anchor, plain)
    assert (a - left.anchor).abs().max() > 1e-3
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 if kind != "jvp" else 1e-5)
    for one, other in zip(left.members, right.members, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        facts = ("tokens", "samples", "forwards", "directions")
        assert all(getattr(one, name) == getattr(other, name) for name in facts)
    assert torch.equal(alone.binding.home.values[0], b[-1])  # the last one's own row, and nothing of a direction


def test_the_size_of_a_pass_changes_nothing(monkeypatch):
    """Directions all at once, and each by itself."""
    for kind in KINDS:
        together, _ = estimates(trainer("llama", local(kind, 6), True))
        monkeypatch.setattr(Passes, "_rows_at_once", lambda *_: 1)
        alone, _ = estimates(trainer("llama", local(kind, 6), True))
        monkeypatch.undo()
        scale = together.norm(dim=1, keepdim=True)
        within = 1e-6 if kind == "jvp" else 1e-3  # a difference magnifies what rounds otherwise
        torch.testing.assert_close(together / scale, alone / scale, rtol=0, atol=within)


def test_exact_in_double_precision_and_of_the_order_that_the_formulas_have():
    """Central: a tenth of h is a hundredth of the error; forward: a tenth of it."""
    torch.manual_seed(0)
    inner, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)

    class Toy:
        def __init__(self):
            self.w, self.at_once, self.everyone = weight, 4, [0]

        def losses(self, rows, owners):
            return torch.tanh(rows @ inner.T).pow(2).sum(1) + rows.exp().sum(1)

        def count(self, *_):
            pass

    v = torch.randn(20, 5, dtype=torch.float64)
    exact = torch.func.vmap(lambda t: torch.func.jvp(lambda w: Toy().losses(w[None], [0])[0], (weight[0],), (t,))[1])(v)

    def error(h, central):
        made = Differences(Toy(), h, central=central)
        toy = Toy()  # the formula itself, without the rounding to float32 of what is sent
        plus, minus = toy.losses(weight + h * v, []), toy.losses(weight - h * v, [])
        formula = (plus - minus) / (2 * h) if central else (plus - toy.losses(weight, [])) / h
        torch.testing.assert_close(made.along(v, [0] * 20), formula.float(), rtol=1e-5, atol=1e-6)
        return float((formula - exact).norm())

    for h in (1e-2, 1e-3):
        assert 50 < error(h, True) / error(h / 10, True) < 150
        assert 5 < error(h, False) / error(h / 10, False) < 15


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased_with_the_known_error(kind, tmp_path):
    """||g_hat - g||^2 / ||g||^2 is (d + 1) / N; here on a quadratic whose gradient is known."""
    d, count = 40, 400
    centres = np.random.default_rng(0).normal(size=(20, d)).tolist()
    prepared = quadratic(centres, local={"gradient": {"kind": kind, "directions": count}})
    t = make_trainer(prepared, grouped=False)
    who = [t.member(prepared.train, k, 1) for k in range(20)]
    seen = []
    group = Group(trainer=t, members=who, anchor=prepared.initial.expand(20, -1), round=1)
    group.train(group.anchor, lambda g, w, _: seen.append(g.clone()) or g)
    g = -torch.tensor(centres, dtype=torch.float32)
    errors = (torch.cat(seen) - g).square().sum(1) / g.square().sum(1)
    expected = (d + 1) / count
    assert errors.mean().item() == pytest.approx(expected, rel=0.25)
    cosines = torch.cosine_similarity(torch.cat(seen), g, dim=1)
    assert cosines.mean().item() == pytest.approx(math.sqrt(count / (count + d + 1)), abs=0.01)


def test_a_complete_orthogonal_basis_is_backpropagation(tmp_path):
    """N = d orthogonal directions of exact derivatives give the gradient: a federation of forward modes is one of backprop."""
    exact = federate(factors(local={"lr": 0.1, "steps": 2}), tmp_path, 2).progress.w
    prepared = factors(
        local={"lr": 0.1, "steps": 2, "gradient": {"kind": "jvp", "directions": 77, "distribution": "orthogonal"}}
    )
    assert prepared.binding.layout.n == 77
    found = federate(prepared, tmp_path, 2).progress.w
    moved = (exact - prepared.initial).norm()
    assert (found - exact).norm() < 1e-4 * moved


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_chosen_costs_nothing_and_stays(kind, grouped):
    """Directions are zero there: they are those of the chosen slices alone, and the estimate is zero beside them."""
    t = trainer("llama", local(kind, 4), grouped)
    only = t.binding.layout.mask(lambda s: s.layer == 1)
    found, group = estimates(t, only=only)
    assert found[:, ~only].abs().max() == 0 < found[:, only].abs().min()
    g = gradient(t, only=only)
    v = drawn(t, group, 0, 4, only=only)
    assert (group.members[0].derivatives[0] - v @ g[0]).abs().max() < 3e-2 * g[0].norm()


# The prefix


def deep(name):
    """A tiny model of four layers, whose adapter is on the upper two."""
    tiny.COMMON["num_hidden_layers"] = 4
    try:
        binding = tiny.bound(name)
    finally:
        tiny.COMMON["num_hidden_layers"] = 2
    return binding


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("name", ["llama", "qwen2", "bert", "roberta", "llama-cls"])
def test_a_replayed_prefix_changes_nothing(name, grouped, monkeypatch):
    """Below the lowest layer that is trained the model runs once a batch, and the derivatives are the same."""
    settings = local("jvp", 6, batch_size=3)
    monkeypatch.setattr(Passes, "_rows_at_once", lambda *_: 4 if grouped else 1)
    t = trainer(name, settings, grouped)
    t = replace(t, binding=deep(name), local=settings)
    t.start = t.binding.home.values.clone()
    only = t.binding.layout.mask(lambda s: s.layer is None or s.layer >= 2)
    calls = []
    stack = next(m for m in t.binding.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
    for i in (1, 3):
        inner = next(m for m in stack[i].modules() if isinstance(m, torch.nn.Linear))
        inner.register_forward_hook(lambda *_, i=i: calls.append(i))
    assert isinstance(t.estimator, ByDirections)
    replayed, _ = estimates(t, only=only)
    assert isinstance(t.estimator._prefix, Prefix) and len(t.estimator._prefix.layers) == 2
    below, above = calls.count(1), calls.count(3)
    calls.clear()
    monkeypatch.setattr("fedloom.local.estimate.find_prefix", lambda *_: None)
    t.estimator = ByDirections(t, t.local.gradient)
    whole, _ = estimates(t, only=only)
    assert calls.count(1) == calls.count(3) > below < above
    torch.testing.assert_close(replayed, whole, rtol=0, atol=1e-6 * whole.norm().item())


def test_gpt2_has_a_prefix_too():
    t = trainer("gpt2", local("central", 4), True)
    only = t.binding.layout.mask(lambda s: s.layer == 1)
    found, _ = estimates(t, only=only)
    assert isinstance(t.estimator._prefix, Prefix)
    t.estimator = ByDirections(t, t.local.gradient, _prefix_for=(only,))
    whole, _ = estimates(t, only=only)
    torch.testing.assert_close(found, whole, rtol=1e-3, atol=1e-3 * whole.abs().max().item())


class Skips(torch.nn.Module):
    """Layers of which the last reads what the first made."""

    def __init__(self, skip):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 3) for _ in range(3)])
        self.skip = skip

    def forward(self, x):
        first = self.layers[0](x)
        second = self.layers[1](torch.relu(first) if self.skip == "between" else first)
        return self.layers[2](second + first if self.skip == "over" else second)


@pytest.mark.parametrize(("skip", "why"), [("between", "something happens between"), ("over", "reads more than")])
def test_a_structure_that_cannot_be_replayed_is_said_so(skip, why):
    model, x = Skips(skip), torch.randn(2, 4, 3)
    found = find_prefix(model, ["layers.2.weight"], lambda: model(x).sum((1, 2)))
    assert why in found
    plain = Skips("no")
    assert isinstance(find_prefix(plain, ["layers.2.weight"], lambda: plain(x).sum((1, 2))), Prefix)
    assert find_prefix(plain, ["layers.0.weight"], lambda: plain(x).sum((1, 2))) is None
    assert "no stack" in find_prefix(torch.nn.Linear(1, 1), ["weight"], lambda: x)


def test_a_run_says_that_it_has_no_prefix(tmp_path):
    """LoRA on the second map alone, in a stack of layers that are not called."""
    prepared = factors(
        {"name": "fedavg"}, adapter={"dropout": 0.0}, local={"gradient": {"kind": "central", "directions": 2}}
    )
    run = federate(prepared, tmp_path, 1)
    text = (run.run_dir.path / "log.txt").read_text()
    assert "run for every direction" not in text  # both maps are trained: nothing lies below


# What cannot be


def test_a_step_that_underflows_is_refused():
    t = trainer("llama", local("central", 3, h=1e-9), True)
    with pytest.raises(ModelError, match=r"1e-09.*do not give derivatives") as raised:
        estimates(t)
    assert "rounds away" in raised.value.why and "set h: " in raised.value.fix


def test_a_step_in_half_precision_is_longer_and_a_short_one_refused():
    def made(**options):
        t = Trainer(
            tiny.bound("llama", dtype=torch.bfloat16), trainer("llama", local(), True).task, TABLE,
            local("central", 3, **options), 0, True,
        )  # fmt: skip
        t.start = t.binding.home.values.clone()
        return t

    assert step_length(local("central").gradient, made().binding.model) == 1e-2
    assert step_length(local("central").gradient, tiny.bound("llama").model) == 1e-3
    with pytest.raises(ModelError, match="do not give derivatives"):
        estimates(made(h=1e-6))


def test_a_flat_loss_is_no_mistake():
    """At the optimum of a client every derivative is zero, with any h."""
    prepared = quadratic([[0.0, 0.0]], local={"gradient": {"kind": "central", "directions": 2}})
    t = make_trainer(prepared, grouped=True)
    group = Group(trainer=t, members=[t.member(prepared.train, 0, 1)], anchor=prepared.initial[None], round=1)
    assert torch.equal(group.train(group.anchor, plain), group.anchor)


class Stubborn(torch.autograd.Function):
    """An operation of one's own, without a forward rule."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize("grouped", [True, False])
def test_a_model_without_a_forward_rule_is_refused_and_central_is_not(grouped):
    def made(kind):
        prepared = factors(local={"gradient": {"kind": kind, "directions": 2}})
        forward = prepared.binding.model.base_model.model.forward
        prepared.binding.model.base_model.model.forward = lambda x: Stubborn.apply(forward(x))
        t = make_trainer(prepared, grouped)
        return Group(trainer=t, members=[t.member(prepared.train, 0, 1)], anchor=prepared.initial[None], round=1)

    group = made("jvp")
    with pytest.raises(ModelError, match="cannot be differentiated forwards") as raised:
        group.train(group.anchor, plain)
    assert "Stubborn" in raised.value.why or "forward" in raised.value.why
    assert "central" in raised.value.fix
    group = made("central")
    assert not torch.equal(group.train(group.anchor, plain), group.anchor)


# What is counted


def test_forward_passes_and_directions_are_counted(tmp_path):
    """3 an example for backpropagation, 2 a direction for central and jvp, 1 and one more for forward."""
    expected = {"backprop": 3, "central": 10, "jvp": 10, "forward": 6}
    for kind, each in expected.items():
        gradient = {"kind": kind} | ({} if kind == "backprop" else {"directions": 5})
        run = federate(factors(local={"gradient": gradient, "steps": 2, "lr": 0.01}), tmp_path, 1)
        record = records(run)[-1]
        assert record["forward_equivalents"] == each * 4 * 12 * 2
        assert record["directions"] == (0 if kind == "backprop" else 5 * 4 * 2)


def test_pacing_draws_until_it_accepts_and_every_draw_counts():
    """Near 2 ||g||^2 / threshold, at most the cap; the estimate is the mean over all of them."""
    pacing = {"kind": "variance", "threshold": 0.1, "cap": 60}
    t = trainer("llama", local("jvp", 5, pacing=pacing), True)
    found, group = estimates(t)
    counts = [len(m.derivatives[0]) for m in group.members]
    assert len(set(counts)) > 1 and max(counts) <= 60 and [m.directions for m in group.members] == counts
    for k, member in enumerate(group.members):
        s = member.derivatives[0]
        assert 2 * s.square().sum() / len(s) ** 2 <= 0.1 or len(s) == 60
        if len(s) > 5:
            before = s[: len(s) - 5]
            assert 2 * before.square().sum() / len(before) ** 2 > 0.1
        v = drawn(t, group, k, len(s))
        torch.testing.assert_close(found[k], (s[:, None] * v).mean(0), rtol=1e-4, atol=1e-5)


def test_a_rejected_attempt_leaves_the_parameters_as_they_were():
    """In place as in groups: when the rule is asked, the rows are the start, bit for bit, and so is the batch."""
    pacing = {"kind": "variance", "threshold": 1e-9, "cap": 15}
    for grouped in (True, False):
        t = trainer("bert", local("central", 5, pacing=pacing), grouped)
        group, seen = open_group(t, t.local), []
        group.train(group.anchor, lambda g, w, _, seen=seen: seen.append(w.clone()) or g)
        assert torch.equal(torch.cat(seen), group.anchor)
        assert [m.directions for m in group.members] == [15] * 4


def test_a_schedule_follows_the_round():
    t = trainer("llama", local("jvp", pacing={"kind": "schedule", "directions": [1, 3]}), True)
    for round, count in ((1, 1), (2, 3), (9, 3)):
        group = replace(open_group(t, t.local), round=round)
        group.train(group.anchor, plain)
        assert [m.directions for m in group.members] == [count] * 4


# Sharing and guidance


def test_shared_directions_give_the_pooled_derivative():
    """The mean over clients of the derivatives along a common direction is that of their common loss."""
    t = trainer("llama", local("jvp", 4, shared=True), True)
    _, group = estimates(t)
    g = gradient(t)
    stream = DirectionStream(t.seed, "directions", 1, "cohort", 0)
    v, _ = draw(t.binding.layout, stream, 4)
    mean = torch.stack([m.derivatives[0] for m in group.members]).mean(0)
    torch.testing.assert_close(mean, v @ g.mean(0), rtol=1e-4, atol=1e-5)
    own = estimates(trainer("llama", local("jvp", 4), True))[1]
    assert (own.members[0].derivatives[0] - group.members[0].derivatives[0]).abs().max() > 1e-3


def test_the_complement_takes_the_last_update_exactly():
    """Where the gradient is along it, the estimate is the gradient; without one, sampling is plain."""
    t = trainer("llama", local("jvp", 4, guidance="complement"), True)
    who = members(t.local)[:1]
    g = gradient(t, who=who)
    guided, _ = estimates(t, who=who, reference=g[0])
    torch.testing.assert_close(guided, g, rtol=1e-3, atol=1e-4 * g.abs().max().item())
    plain_draws, _ = estimates(trainer("llama", local("jvp", 4), True), who=members(t.local)[:1])
    for reference in (None, torch.zeros_like(g[0])):
        assert torch.equal(estimates(t, who=members(t.local)[:1], reference=reference)[0], plain_draws)


def test_the_complement_is_its_lead_and_the_mean_of_the_others():
    """s_1 v_1 + 1/(N - 1) sum_k s_k v_k over the others, where the gradient is not along the last update; also where a part is
    trained, to which the last update says nothing."""
    t = trainer("llama", local("jvp", 4, guidance="complement"), True)
    who, g = members(t.local)[:2], gradient(t, who=members(t.local)[:2])
    noise = torch.randn(len(g[0]), generator=torch.Generator().manual_seed(3))
    reference = g[0] / g[0].norm() + noise / noise.norm()
    found, group = estimates(t, who=who, reference=reference)
    for k in (0, 1):
        v = drawn(t, group, k, 4, guidance="complement", reference=reference)
        s = v @ g[k]
        expected = s[0] * v[0] + s[1:] @ v[1:] / 3
        assert (found[k] - expected).norm() < 1e-3 * expected.norm()
    only = t.binding.layout.mask(lambda s: s.layer == 1)
    plain_draws, _ = estimates(trainer("llama", local("jvp", 4), True), only=only)
    elsewhere, _ = estimates(trainer("llama", t.local, True), only=only, reference=reference * ~only)
    assert torch.equal(elsewhere, plain_draws)


def test_the_server_sends_its_last_update_where_it_guides(tmp_path):
    """From the second round on, and it is counted."""
    guided = {"kind": "central", "directions": 3, "guidance": "complement"}
    kinds = (guided, {"kind": "central", "directions": 3})
    runs = [federate(factors(local={"gradient": g, "lr": 0.01}), tmp_path, 2) for g in kinds]
    w = [run.progress.server.get("previous update") for run in runs]
    assert w[0] is not None and w[1] is None
    down = [[r["bytes_down"] for r in records(run)[1:]] for run in runs]
    assert down[0][0] == down[1][0] and down[0][1] > down[1][1] + 4 * 77 * 4
    assert not torch.equal(runs[0].progress.w, runs[1].progress.w)


def test_gradients_elsewhere_and_over_all_rows_are_estimates_too():
    t = trainer("llama", local("jvp", 3), True)
    seen = []

    def rule(g, w, group):
        torch.testing.assert_close(group.at(w), g, rtol=0, atol=1e-6)
        seen.append(g)
        return g

    group = open_group(t, t.local)
    group.train(group.anchor, rule)
    assert [len(m.derivatives) for m in group.members] == [1] * 4
    whole = group.gradients(group.anchor)
    exact = replace(t, local=t.local.model_copy(update={"gradient": Local(steps=1).gradient}))
    g = open_group(exact, t.local, rows=group.anchor).gradients(group.anchor)
    stream = DirectionStream(t.seed, "directions", 1, group.members[0].client, -1)
    v, _ = draw(t.binding.layout, stream, 3)
    torch.testing.assert_close(whole[0], ((v @ g[0])[:, None] * v).mean(0), rtol=1e-3, atol=1e-4)


def test_attention_is_as_before_when_the_step_is_done():
    t = trainer("llama", local("jvp", 2), True)
    config = t.binding.model.config
    before = config._attn_implementation
    estimates(t)
    assert config._attn_implementation == before != "eager"
