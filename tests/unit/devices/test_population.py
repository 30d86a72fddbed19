"""How long work takes, and what devices drawn at random look like."""

import numpy as np
import pytest

from fedloom.config.devices import AlikeDevices, FileDevices, GeneratedDevices
from fedloom.devices.files import write_devices
from fedloom.devices.generate import DAY, generate
from fedloom.devices.make import make_population
from fedloom.devices.population import Work, alike
from fedloom.errors import DataError

HERE = {"seed": 0, "base": None}


def test_seconds_by_hand():
    """1000 bytes are 8 kbit: 4 s at 2 kbps; 30 passes of 80 ms at twice the cost: 4.8 s; 500 bytes up at 8 kbps: 0.5 s."""
    devices = alike(2, ms_per_sample=80, down_kbps=2, up_kbps=8, cost=2.0)
    times = devices.times(Work(1000.0, np.array([30.0, 0.0]), 500.0))
    assert times.down.tolist() == pytest.approx([4, 4])
    assert times.compute.tolist() == pytest.approx([4.8, 0])
    assert times.up.tolist() == pytest.approx([0.5, 0.5])
    assert devices.times(Work(1000.0, np.array([30.0, 0.0]), 500.0), np.array([1])).total.tolist() == pytest.approx(
        [4.5]
    )


@pytest.fixture(scope="module")
def many():
    return generate(4000, seed=1)


def test_speeds_have_the_published_shapes(many):
    low, median, high = np.quantile(many.ms_per_sample, [0.05, 0.5, 0.95])
    assert 10 < low < 30 and 60 < median < 100 and 200 < high < 400
    assert 5000 < np.median(many.down_kbps) < 7200
    share = many.up_kbps / many.down_kbps
    assert share.min() >= 0.3 - 1e-6 and share.max() <= 1 + 1e-6


def test_devices_come_and_go_as_phones_do(many):
    own = many.availability
    assert 0.2 < own.online_share.mean() < 0.45
    assert 0.05 < (own.online_share == 0).mean() < 0.1
    by_hour = [own.online(2 * DAY + hour * 3600).mean() for hour in range(24)]
    assert max(by_hour) > 3 * min(by_hour)  # nights and days
    lengths = own.ends - own.starts
    short = lengths < 3600
    assert (
        short.mean() > 0.4 and lengths[short].sum() < 0.1 * lengths.sum()
    )  # many are short, most time is in long ones
    assert (lengths < 60).any()
    most = np.sort(own.online_share)[::-1]
    assert most[: len(most) * 3 // 10].sum() > 0.35 * most.sum()


def test_intervals_are_sorted_apart_and_within_the_period(many):
    own = many.availability
    assert (own.starts >= 0).all() and (own.ends <= own.period).all() and (own.ends > own.starts).all()
    owners = np.repeat(np.arange(len(own)), np.diff(own.offsets))
    same = owners[1:] == owners[:-1]
    assert (own.starts[1:][same] > own.ends[:-1][same]).all()


@pytest.mark.parametrize(("correlation", "least", "most"), [(0.0, -0.05, 0.05), (0.8, 0.7, 0.85), (1.0, 0.97, 1.0)])
def test_the_knob_ties_size_speed_and_time_online(correlation, least, most):
    sizes = (100_000 * np.random.default_rng(0).lognormal(size=4000)).astype(int)
    made = generate(4000, seed=2, sizes=sizes, correlation=correlation)
    speed, online = 1 / made.ms_per_sample, made.availability.online_share

    def ranks(values):
        return np.argsort(np.argsort(values))

    for values in (speed, online):
        assert least <= np.corrcoef(ranks(sizes), ranks(values))[0, 1] <= most
    plain = generate(4000, seed=2)
    assert sorted(plain.ms_per_sample) == sorted(made.ms_per_sample)  # the marginals are the same


def test_the_seed_decides(many):
    assert (generate(4000, seed=1).ms_per_sample == many.ms_per_sample).all()
    assert (generate(4000, seed=2).ms_per_sample != many.ms_per_sample).any()


def test_an_experiments_devices(tmp_path):
    sizes = np.arange(1, 6)
    equal = make_population(AlikeDevices(kind="alike", ms_per_sample=7.0), sizes, **HERE)
    assert equal.ms_per_sample.tolist() == [7.0] * 5
    there = make_population(GeneratedDevices(kind="generated", always_online=True, cost=3.0), sizes, **HERE)
    assert there.availability.online(1.0).all() and there.cost == 3.0
    away = make_population(GeneratedDevices(kind="generated", days=2), sizes, **HERE)
    assert away.availability.period == 2 * DAY


def test_devices_of_a_file_are_dealt_out(tmp_path):
    made = generate(3, seed=0)
    write_devices(made, tmp_path / "three.parquet")
    settings = FileDevices(kind="file", path="three.parquet", cost=2.0)
    dealt = make_population(settings, np.ones(3), seed=5, base=tmp_path)
    assert sorted(dealt.names) == ["device-0", "device-1", "device-2"] and dealt.cost == 2.0
    assert sorted(dealt.ms_per_sample) == sorted(made.ms_per_sample)
    orders = {tuple(make_population(settings, np.ones(3), seed=s, base=tmp_path).names) for s in range(8)}
    assert len(orders) > 1
    with pytest.raises(DataError, match="holds 3 devices, and there are 4 clients"):
        make_population(settings, np.ones(4), seed=0, base=tmp_path)
    again = make_population(settings.model_copy(update={"reuse": True}), np.ones(7), seed=0, base=tmp_path)
    assert sorted(again.names.count(f"device-{k}") for k in range(3)) == [2, 2, 3]
