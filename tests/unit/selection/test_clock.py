"""A round on the virtual clock: by hand, by law, and with nothing lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.devices import AllWait, DeadlineWait, OvercommitWait, QuorumWait
from fedloom.devices.availability import of_intervals
from fedloom.devices.population import Population, Work
from fedloom.selection.clock import FATES, asked, play

PERIOD = 1000
ALL = AllWait(kind="all")


def devices(seconds, intervals=None):
    """Devices that take so many seconds: a tenth receiving 100 bytes, eight computing, a tenth sending 200."""
    seconds = np.array(seconds, dtype=np.float32)
    spans = intervals or [[(0, PERIOD)]] * len(seconds)
    return Population(seconds * 800, 8 / seconds, 16 / seconds, of_intervals(spans, PERIOD))


WORK = Work(100.0, 1.0, 200.0)


def played(population, wait, wanted, now=0.0, clients=None):
    clients = np.arange(len(population)) if clients is None else np.array(clients)
    end, found = play(population, clients, WORK, now, wait, wanted)
    return end, [FATES[f] for f in found.fate], found


def test_devices_take_what_they_are_made_for():
    times = devices([10.0, 40.0]).times(WORK)
    assert times.down.tolist() == pytest.approx([1, 4])
    assert times.compute.tolist() == pytest.approx([8, 32])
    assert times.up.tolist() == pytest.approx([1, 4])


@pytest.mark.parametrize(
    ("wait", "end", "fates"),
    [
        (ALL, 40, ["arrived", "arrived", "arrived", "arrived"]),
        (OvercommitWait(kind="overcommit", factor=2.0), 20, ["arrived", "arrived", "late", "late"]),
        (DeadlineWait(kind="deadline", seconds=30), 30, ["arrived", "arrived", "arrived", "late"]),
        (DeadlineWait(kind="deadline", seconds=5), 5, ["late"] * 4),
        (DeadlineWait(kind="deadline", seconds=500), 40, ["arrived"] * 4),
        (QuorumWait(kind="quorum", updates=3), 30, ["arrived", "arrived", "arrived", "late"]),
    ],
)
def test_when_a_round_is_over(wait, end, fates):
    """Four devices that take 10, 20, 30 and 40 s, of which two are wanted."""
    over, found, _ = played(devices([10, 20, 30, 40]), wait, 2, now=100.0)
    assert over == pytest.approx(100 + end) and found == fates


def test_what_was_done_in_vain_by_hand():
    """Wanted is one, of 10 s. The second, of 20 s, is stopped at 10 s: 2 s received, 8 of 16 computed. The third goes offline at
    3 s of 60, half way through receiving.
    """
    population = devices([10, 20, 60], [[(0, PERIOD)], [(0, PERIOD)], [(0, 3)]])
    end, fates, found = played(population, OvercommitWait(kind="overcommit", factor=3.0), 1)
    assert end == pytest.approx(10) and fates == ["arrived", "late", "offline"]
    assert found.seconds.tolist() == pytest.approx([10, 10, 3])
    assert found.bytes_down.tolist() == [100, 100, 50]
    assert found.bytes_up.tolist() == [200, 0, 0]


def test_who_goes_offline_does_not_hold_up_the_others():
    population = devices([10, 20, 90], [[(0, PERIOD)], [(0, PERIOD)], [(0, 50)]])
    assert played(population, ALL, 3)[:2] == (50.0, ["arrived", "arrived", "offline"])
    assert played(population, OvercommitWait(kind="overcommit", factor=1.0), 3)[:2] == (
        50.0,
        ["arrived", "arrived", "offline"],
    )
    deadline = DeadlineWait(kind="deadline", seconds=30)
    assert played(population, deadline, 3)[:2] == (30.0, ["arrived", "arrived", "late"])


def test_who_is_offline_already_is_lost_at_once():
    population = devices([10, 20], [[(0, 100)], [(200, 300)]])
    end, fates, found = played(population, ALL, 2, now=50.0)
    assert (
        end == pytest.approx(60)
        and fates == ["arrived", "offline"]
        and found.seconds.tolist() == pytest.approx([10, 0])
    )


def test_of_those_that_arrive_together_the_first_by_number_count():
    _, fates, _ = played(devices([10, 10, 10]), OvercommitWait(kind="overcommit", factor=1.5), 2)
    assert fates == ["arrived", "arrived", "late"]


def test_how_many_are_asked():
    assert asked(OvercommitWait(kind="overcommit", factor=1.3), 100) == 130
    assert asked(OvercommitWait(kind="overcommit", factor=1.3), 5) == 7
    assert asked(ALL, 5) == asked(QuorumWait(kind="quorum", updates=2), 5) == 5


waits = st.one_of(
    st.just(ALL),
    st.floats(1, 3).map(lambda factor: OvercommitWait(kind="overcommit", factor=factor)),
    st.floats(0.5, 200).map(lambda seconds: DeadlineWait(kind="deadline", seconds=seconds)),
    st.integers(1, 8).map(lambda updates: QuorumWait(kind="quorum", updates=updates)),
)
spans = st.lists(
    st.tuples(st.integers(0, 400), st.integers(401, 1000)).map(lambda span: [span]), min_size=8, max_size=8
)


@given(st.lists(st.floats(0.1, 300), min_size=8, max_size=8), spans, waits, st.integers(1, 8), st.floats(0, 2000))
def test_the_laws_of_a_round(seconds, intervals, wait, wanted, now):
    population = devices(seconds, intervals)
    end, fates, found = played(population, wait, wanted, now)
    total = population.times(WORK).total
    left = population.availability.until(np.arange(8), now) - now
    took = end - now
    arrived = found.arrived
    assert end >= now
    assert (found.seconds <= took + 1e-9).all()  # nobody works after the round
    assert (found.seconds <= np.minimum(total, left) + 1e-9).all()  # nor offline, nor for longer than the work takes
    assert np.allclose(found.seconds[arrived], total[arrived])
    assert (left[arrived] >= total[arrived]).all()
    assert (found.bytes_down[arrived] == 100).all() and (found.bytes_up[arrived] == 200).all()
    assert (found.bytes_up[~arrived] <= 200).all()
    offline = np.array(fates) == "offline"
    assert np.allclose(found.seconds[offline], left[offline])
    could = np.sort(np.where(left < total, np.inf, total))
    if isinstance(wait, OvercommitWait | QuorumWait):
        count = wanted if isinstance(wait, OvercommitWait) else min(wait.updates, 8)
        assert arrived.sum() == min(count, np.isfinite(could).sum())
        if np.isfinite(could[count - 1]):
            assert took == pytest.approx(could[count - 1])  # the order statistic
    if isinstance(wait, DeadlineWait):
        assert arrived.sum() == (could <= took + 1e-6).sum() and took <= wait.seconds + 1e-6


@given(st.permutations(range(5)), waits)
def test_the_order_in_which_clients_are_named_changes_nothing(order, wait):
    population = devices([10, 25, 25, 40, 60], [[(0, 30)], [(0, 100)], [(0, 100)], [(0, 20)], [(0, 100)]])
    end, fates, found = played(population, wait, 3)
    other_end, other, shuffled = played(population, wait, 3, clients=order)
    assert end == other_end
    assert [fates[k] for k in order] == other
    assert found.seconds[list(order)].tolist() == shuffled.seconds.tolist()
