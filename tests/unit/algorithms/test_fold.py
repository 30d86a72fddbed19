"""Aggregation: the fold against a plain mean, by hand and by law."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.aggregation.mean import Mean


def fold_of(rows, weights, fold=None):
    fold = fold or Mean()
    total = fold.empty()
    for row, weight in zip(rows, weights, strict=True):
        total = fold.add(total, {"delta": row}, weight, row)
    return total


def mean(rows, weights):
    return Mean().finish(fold_of(rows, weights))["delta"]


def test_by_hand():
    """(1 * [1, 2] + 3 * [5, -2]) / 4 = [4, -1]."""
    assert mean(torch.tensor([[1.0, 2.0], [5.0, -2.0]]), [1.0, 3.0]).tolist() == [4.0, -1.0]


def test_nothing_came_back():
    assert Mean().finish(Mean().empty()) == {}
    assert mean(torch.ones(2, 3), [0.0, 0.0]).tolist() == [0.0, 0.0, 0.0]


def test_what_is_unweighted_counts_alike_and_a_discount_shrinks():
    """(1 + 5) / 2 = 3 for `c`; with discount 1/2 on the second, (1 * 1 + 3 * 5 / 2) / 4 = 2.125 for `delta`."""
    fold = Mean({"c"})
    total = fold.empty()
    for value, weight, discount in ((1.0, 1.0, 1.0), (5.0, 3.0, 0.5)):
        one = torch.tensor([value])
        total = fold.add(total, {"delta": one}, weight, one, discount)
        total = fold.merge(total, fold.empty())
    assert fold.finish(total)["delta"].item() == 2.125
    plain = fold.empty()
    for value, weight in ((1.0, 1.0), (5.0, 3.0)):
        plain = fold.add(plain, {"c": torch.tensor([value])}, weight, torch.zeros(1))
    assert fold.finish(plain)["c"].item() == 3.0


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_laws(k, size, seed):
    g = torch.Generator().manual_seed(seed)
    rows, weights = torch.randn(k, 7, generator=g), torch.rand(k, generator=g) + 0.1
    fold, before = Mean(), rows.clone()
    exact = ((weights.double() @ rows.double()) / weights.double().sum()).float()
    parts = fold.empty()
    for i in range(0, k, size):
        parts = fold.merge(parts, fold_of(rows[i : i + size], weights[i : i + size].tolist(), fold))
    torch.testing.assert_close(fold.finish(parts)["delta"], exact, rtol=1e-6, atol=1e-7)
    order = torch.randperm(k, generator=g)
    torch.testing.assert_close(mean(rows[order], weights[order].tolist()), exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mean(rows, (weights * 8).tolist()), exact, rtol=1e-6, atol=1e-7)
    assert torch.equal(rows, before)


def test_small_updates_survive_beside_large_ones():
    """A float32 sum would lose the ones: 1e8 + 1 is 1e8 there."""
    rows = torch.tensor([[1e8]] + [[1.0]] * 100 + [[-1e8]])
    assert mean(rows, [1.0] * 102).item() == pytest.approx(100 / 102, rel=1e-6)


def test_a_vector_of_many_blocks_is_added_and_divided_as_a_whole():
    from fedloom.aggregation.mean import _BLOCK

    r = torch.Generator().manual_seed(0)
    rows = [torch.randn(2, _BLOCK + 3, generator=r) for _ in range(3)]
    rule, weights = Mean(), [1.0, 2.5, 0.3]
    partial = rule.empty()
    for row, weight in zip(rows, weights, strict=True):
        partial = rule.add(partial, {"delta": row}, weight, row[0])
    whole = sum(weight * row.double() for row, weight in zip(rows, weights, strict=True)) / sum(weights)
    torch.testing.assert_close(rule.finish(partial)["delta"], whole.float(), rtol=1e-6, atol=1e-9)
