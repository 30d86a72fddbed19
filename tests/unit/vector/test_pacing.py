"""How many directions a step needs."""

import math
from statistics import median

import pytest
import torch

from fedloom.errors import FedloomError
from fedloom.vector.directions import DirectionStream, directions
from fedloom.vector.layout import Layout
from fedloom.vector.pacing import (
    Fixed,
    Schedule,
    SignalToNoise,
    VarianceControlled,
    half_split_variance,
    relative_noise,
    scalar_variance,
    shrinkage,
    signal_to_noise,
    squared_norm,
)


def flat(d):
    return Layout.of([("w", torch.empty(d))])


def stream(step=0, client="c"):
    return DirectionStream(0, "directions", 0, client, step)


def gradient(d, norm=1.0):
    g = torch.randn(d, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    return norm * g / g.norm()


def step(pacer, g, number=0, round=0):
    """One step on the linear loss g . w: the scalars, how many were drawn each time, and the estimate from all of them."""
    d, scalars, attempts = len(g), torch.zeros(0, dtype=torch.float64), []
    g_sum = torch.zeros(d, dtype=torch.float64)
    while more := pacer.more(scalars, round=round, d=d):
        V = directions(flat(d), stream(number).keys(more, start=len(scalars))).double()
        scalars = torch.cat([scalars, V @ g])
        g_sum += (V @ g) @ V
        attempts.append(more)
    return scalars, attempts, g_sum / len(scalars)


def test_half_split_variance_by_hand():
    # Halves (1, 2), (3, 6) and (5, 0), (1, 2): means (2, 4) and (3, 1); ((2 - 3)^2 / 2 + (4 - 1)^2 / 2) / 2 = 2.5
    assert half_split_variance(torch.tensor([[1.0, 2], [3, 6], [5, 0], [1, 2]])) == 2.5
    # Odd: the first half is (1, 2) alone, the second has mean (4, 3): (9 / 2 + 1 / 2) / 2 = 2.5
    assert half_split_variance(torch.tensor([[1.0, 2], [3, 6], [5, 0]])) == 2.5
    assert half_split_variance(torch.tensor([[[1.0], [2]], [[1], [2]]])) == 0
    with pytest.raises(FedloomError, match="at least 2"):
        half_split_variance(torch.ones(1, 3))


@pytest.mark.parametrize("count", [10, 100])
def test_scalars_alone_give_the_statistic(count):
    d = 36_864
    g = gradient(d, norm=2.0)
    V = directions(flat(d), stream().keys(count))
    scalars = (V.double() @ g).float()
    assert half_split_variance(scalars[:, None] * V) == pytest.approx(scalar_variance(scalars), rel=0.03)


def test_the_statistic_falls_with_directions_and_grows_with_the_square_of_the_loss():
    d, g = 500, gradient(500)
    means = []
    for count in (40, 80):
        rows = [directions(flat(d), stream(i).keys(count)) for i in range(50)]
        means.append([sum(f) / 50 for f in zip(*(both(V, V.double() @ g) for V in rows), strict=True)])
    for few, many in zip(*means, strict=True):
        assert many == pytest.approx(few / 2, rel=0.15)
    V = rows[0]
    scalars = (V.double() @ g).float()
    assert both(V, 4 * scalars) == tuple(16 * x for x in both(V, scalars))


def both(V, scalars):
    return half_split_variance(scalars[:, None] * V), scalar_variance(scalars)


def test_norms_and_shrinkage():
    scalars = torch.tensor([1.0, -3, 2])
    assert squared_norm(scalars) == pytest.approx(14 / 3)
    assert scalar_variance(scalars) == pytest.approx(2 / 9 * 14)
    assert shrinkage(20, 1107) == pytest.approx(20 / 1128)
    d, g = 300, gradient(300)
    for kind in ("gaussian", "rademacher", "sphere", "orthogonal"):
        errors, powers = [], []
        for i in range(40):
            V = directions(flat(d), stream(i).keys(50), kind).double()
            errors.append(float(((V @ g) @ V / 50 - g).square().sum()))
            powers.append(squared_norm(V @ g))
        assert sum(errors) / 40 == pytest.approx(relative_noise(50, d, kind), rel=0.1)
        assert sum(powers) / 40 == pytest.approx(1, rel=0.1)


def test_signal_to_noise():
    assert signal_to_noise(torch.tensor([5.0, -1, 2]), d=11) == pytest.approx(3 / 12)
    assert signal_to_noise(torch.ones(1, 3), d=11) == pytest.approx(3 / 12)
    # Two clients: means (2, 4), so power 10; variances 2 and 8, mean 5, so t/C = 2.5; signal 7.5, noise 5/2 * 10 + 2.5
    assert signal_to_noise(torch.tensor([[1.0, 2], [3, 6]]), d=4) == pytest.approx(7.5 / 27.5)
    assert signal_to_noise(torch.tensor([[1.0, -1], [-1, 1]]), d=4) == 0
    assert signal_to_noise(torch.ones(4), d=4, kind="orthogonal") == math.inf


def test_signal_to_noise_of_a_cohort_is_what_its_error_says():
    """C gradients around g with the directions shared: signal over mean squared error of the estimate, over 60 cohorts."""
    d, clients, count, noise = 100, 8, 60, torch.Generator().manual_seed(0)
    g = gradient(d)
    signals, errors = [], []
    for i in range(60):
        G = g + torch.randn(clients, d, generator=noise, dtype=torch.float64) * 0.15
        V = directions(flat(d), stream(i).keys(count)).double()
        scalars = G @ V.T
        errors.append(float((scalars.mean(0) @ V / count - g).square().sum()))
        signals.append(signal_to_noise(scalars, d))
    assert sum(signals) / 60 == pytest.approx(60 / sum(errors), rel=0.15)


@pytest.mark.parametrize(
    ("pacer", "round", "count"), [(Fixed(7), 3, 7), *[(Schedule((1, 3, 6)), r, n) for r, n in enumerate((1, 3, 6, 6))]]
)
def test_fixed_and_scheduled_numbers(pacer, round, count):
    scalars, attempts, _ = step(pacer, gradient(50), round=round)
    assert attempts == [count]
    assert len(scalars) == count
    assert pacer.more(torch.zeros(count + 5), round=round, d=50) == 0


@pytest.mark.parametrize(("power", "threshold"), [(1.0, 0.02), (4.0, 0.1)])
def test_variance_pacing_on_a_linear_loss(power, threshold):
    g = gradient(400, norm=math.sqrt(power))
    counts = []
    for i in range(50):
        scalars, attempts, g_hat = step(VarianceControlled(threshold, cap=1000), g, i)
        counts.append(len(scalars))
        assert len(scalars) == sum(attempts)
        assert scalar_variance(scalars) <= threshold < scalar_variance(scalars[:-10])
        if i == 0:  # accepted is the mean over all draws, those of the attempts that failed too
            V = directions(flat(400), stream(i).keys(len(scalars))).double()
            torch.testing.assert_close(g_hat, (V @ g) @ V / len(V), rtol=0, atol=1e-12)
    assert 1 / 1.5 < median(counts) / (2 * power / threshold) < 1.5


@pytest.mark.parametrize("pacer", [VarianceControlled(0.0, cap=33), SignalToNoise(1e9, cap=33)])
@pytest.mark.parametrize("scale", [1.0, 0.0, math.nan, math.inf])
def test_the_cap_ends_every_step(pacer, scale):
    scalars, attempts = torch.zeros(0), []
    while more := pacer.more(scalars, round=0, d=10):
        attempts.append(more)
        scalars = torch.cat([scalars, torch.ones(more) * scale])
        assert len(attempts) < 10
    assert sum(attempts) <= 33
    if scale != 0:
        assert sum(attempts) == 33


def test_one_direction_is_never_enough_to_tell_the_variance():
    assert VarianceControlled(1e9, cap=5, attempt=1).more(torch.ones(1), round=0, d=10) == 1
    assert VarianceControlled(1e9, cap=5, attempt=1).more(torch.ones(2), round=0, d=10) == 0


def test_signal_to_noise_pacing_asks_once_for_what_is_missing():
    scalars, attempts, _ = step(SignalToNoise(0.5, cap=1000), gradient(199))
    assert attempts == [10, 90]  # N = rho (d + 1) = 100
    assert signal_to_noise(scalars, 199) == pytest.approx(0.5)
    assert step(SignalToNoise(0.5, cap=60), gradient(199))[1] == [10, 50]
    assert step(SignalToNoise(1.0, cap=1000, kind="orthogonal"), gradient(199))[1] == [10, 90]  # N = d / 2, up

    # Clients that differ: power 10, spread 2.5 as above, d + 1 = 5. rho = 1: 7.5 >= 50/N + 2.5 from N = 10 on.
    two = torch.tensor([[1.0, 2], [3, 6]])
    assert SignalToNoise(1.0, cap=100).more(two, round=0, d=4) == 8
    # rho = 3: 7.5 / 3 is the clients' own noise, which no number of directions lowers
    assert SignalToNoise(3.0, cap=100).more(two, round=0, d=4) == 98


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed(0),
        lambda: Schedule(()),
        lambda: Schedule((3, 0)),
        lambda: VarianceControlled(0.1, cap=0),
        lambda: VarianceControlled(0.1, cap=3, attempt=0),
        lambda: SignalToNoise(0.0, cap=3),
        lambda: signal_to_noise(torch.zeros(0), 3),
    ],
)
def test_what_estimates_nothing_is_refused(make):
    with pytest.raises(FedloomError):
        make()
