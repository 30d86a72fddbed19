"""When devices are online, against a twin that looks at every second."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.devices.availability import always, of_intervals

PERIOD = 20


@st.composite
def traces(draw):
    """Some devices' seconds online in a period, `[N, PERIOD]`."""
    n = draw(st.integers(1, 4))
    return np.array([draw(st.lists(st.booleans(), min_size=PERIOD, max_size=PERIOD)) for _ in range(n)])


def availability_of(seconds):
    intervals = []
    for own in seconds:
        edges = np.flatnonzero(np.diff(np.r_[False, own, False].astype(int)))
        intervals.append(list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)))
    return of_intervals(intervals, PERIOD)


times = st.floats(0, 5 * PERIOD, allow_nan=False)


@given(traces(), times)
def test_online_is_the_second_looked_up(seconds, at):
    expected = seconds[:, int(at % PERIOD)]
    assert availability_of(seconds).online(at).tolist() == expected.tolist()


@given(traces(), times)
def test_until_is_the_next_second_offline(seconds, at):
    found = availability_of(seconds)
    for k, own in enumerate(seconds):
        expected = at
        if own[int(at % PERIOD)]:
            ahead = [s for s in range(int(at) + 1, int(at) + PERIOD + 1) if not own[s % PERIOD]]
            expected = ahead[0] if ahead else np.inf
        assert found.until(np.array([k]), at)[0] == pytest.approx(expected)


@given(traces(), times, st.floats(0.5, 3 * PERIOD))
def test_the_share_online_is_the_integral(seconds, begin, length):
    grid = begin + (np.arange(2000) + 0.5) * length / 2000
    expected = seconds[:, (grid % PERIOD).astype(int)].mean(1)
    found = availability_of(seconds).share_online(np.arange(len(seconds)), begin, begin + length)
    assert np.allclose(found, expected, atol=2 * PERIOD / 2000 * 5)


@given(traces(), times)
def test_the_next_start_is_the_first_second_somebody_comes(seconds, at):
    found = availability_of(seconds)
    starts = {s for own in seconds for s in range(PERIOD) if own[s] and (s == 0 or not own[s - 1])}
    later = [at - at % PERIOD + s + PERIOD * (s <= at % PERIOD) for s in starts]
    assert found.next_start(at) == (pytest.approx(min(later)) if later else None)


@given(traces(), st.permutations(range(6)))
def test_answers_do_not_depend_on_what_was_asked_before(seconds, order):
    found, everyone = availability_of(seconds), np.arange(len(seconds))
    asked = [0.0, 3.5, 19.0, 21.0, 40.5, 7.0]
    expected = {at: availability_of(seconds).until(everyone, at).tolist() for at in asked}
    for place in order:
        assert found.until(everyone, asked[place]).tolist() == expected[asked[place]]


@given(traces(), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_devices_can_be_taken_in_any_order(seconds, picked):
    picked = [k % len(seconds) for k in picked]
    taken = availability_of(seconds).take(np.array(picked))
    for at in range(PERIOD):
        assert taken.online(at).tolist() == seconds[picked, at].tolist()
    assert np.allclose(taken.online_share, seconds[picked].mean(1))


def test_always():
    found = always(3)
    assert found.online(1e9 + 0.5).all()
    assert np.isinf(found.until(np.array([0, 2]), 123.4)).all()
    assert (found.online_share == 1).all()
