"""Aggregation: the fold against a plain mean, by hand and by law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.aggregation.mean import Mean
from fedloom.algorithms import ALGORITHMS, resolve


def mean(rows, weights):
    fold = Mean()
    return fold.finish(fold.add(fold.empty(rows.shape[1]), rows, weights))


def test_by_hand():
    """(1 * [1, 2] + 3 * [5, -2]) / 4 = [4, -1]."""
    assert mean(torch.tensor([[1.0, 2.0], [5.0, -2.0]]), [1.0, 3.0]).tolist() == [4.0, -1.0]


def test_nothing_came_back():
    fold = Mean()
    assert fold.finish(fold.empty(3)).tolist() == [0.0, 0.0, 0.0]


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_laws(k, size, seed):
    g = torch.Generator().manual_seed(seed)
    rows, weights = torch.randn(k, 7, generator=g), torch.rand(k, generator=g) + 0.1
    fold, before = Mean(), rows.clone()
    exact = ((weights.double() @ rows.double()) / weights.double().sum()).float()
    parts = fold.empty(7)
    for i in range(0, k, size):
        parts = fold.merge(parts, fold.add(fold.empty(7), rows[i : i + size], weights[i : i + size].tolist()))
    torch.testing.assert_close(fold.finish(parts), exact, rtol=1e-6, atol=1e-7)
    order = torch.randperm(k, generator=g)
    torch.testing.assert_close(mean(rows[order], weights[order].tolist()), exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mean(rows, (weights * 8).tolist()), exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(rows, before)


def test_small_updates_survive_beside_large_ones():
    """A float32 sum would lose the ones: 1e8 + 1 is 1e8 there."""
    rows = torch.tensor([[1e8]] + [[1.0]] * 100 + [[-1e8]])
    assert mean(rows, [1.0] * 102).item() == pytest.approx(100 / 102, rel=1e-6)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_pure_and_titled(name, tmp_path):
    """Inputs are bit-identical after each part; title and paper are stated."""
    algorithm = resolve(name, tmp_path)()
    assert algorithm.title and algorithm.paper
    torch.manual_seed(0)
    w, rows = torch.randn(6), torch.randn(3, 6)
    fresh = algorithm.client_state(w)
    state = {k: torch.stack([v] * 3) for k, v in fresh.items()}
    inputs = [w, rows, *state.values()]
    copies = [t.clone() for t in inputs]
    start = algorithm.broadcast(w, state, 3)
    assert start.shape == (3, 6) and torch.equal(start, w.expand(3, -1))
    assert algorithm.gradient(rows, rows, start, state).shape == (3, 6)
    delta, after = algorithm.upload(rows - w, rows, state)
    assert set(after) == set(fresh) and (delta is None or delta.shape == (3, 6))
    new, _ = algorithm.apply(w, torch.ones(6), algorithm.server_state(w))
    assert torch.equal(new, w + 1)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


def test_local_clients_go_on_from_their_own(tmp_path):
    local = resolve("local", tmp_path)()
    w, own = torch.zeros(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(local.broadcast(w, {"own": own}, 2), own)
    delta, state = local.upload(torch.ones(2, 2), own + 1, {"own": own})
    assert delta is None and torch.equal(state["own"], own + 1)
