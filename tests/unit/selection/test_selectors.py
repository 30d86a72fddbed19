"""Each selector: a hand-made case, its law in the long run, and what all must keep to."""

from collections import Counter

import numpy as np
import pytest
from pools import WORK, pool, told

from fedloom import selection
from fedloom.devices.availability import of_intervals
from fedloom.devices.population import Population, alike
from fedloom.errors import UsageError
from fedloom.selection.by_availability import ByAvailability
from fedloom.selection.by_size import BySize
from fedloom.selection.fedcs import FedCS
from fedloom.selection.pool import Pool, uniform
from fedloom.selection.power_of_choice import PowerOfChoice
from fedloom.selection.pyramidfl import PyramidFL
from fedloom.selection.refl import REFL
from fedloom.selection.round_robin import RoundRobin
from fedloom.selection.uniform import Uniform


def counts(selector, make, rounds, count):
    """How often each is chosen, its state kept."""
    state, found = selector.begin(make(1).sizes), Counter()
    for number in range(1, rounds + 1):
        found.update(selector.select(make(number), count, state).tolist())
    return found


OPTIONS = {"power_of_choice": {"candidates": 6}, "fedcs": {"deadline": 1e6}}


@pytest.mark.parametrize("name", selection.SELECTORS)
def test_all_choose_among_those_online_each_once(name):
    selector = selection.build({"name": name, **OPTIONS.get(name, {})}, None)
    intervals = [[(0, 50)] if k % 3 else [(50, 100)] for k in range(30)]
    state = selector.begin(np.arange(1, 31))
    for number in range(1, 12):
        now = 10.0 if number % 2 else 60.0
        of = pool(30, number, now, sizes=np.arange(1, 31), intervals=intervals)
        chosen = selector.select(of, 4, state)
        assert len(chosen) == len(set(chosen.tolist())) == 4
        assert of.online[chosen].all()
        selector.learn(state, told(chosen, arrived=chosen % 2 == 0), number)
        everybody = selector.select(of, 100, state)
        assert sorted(everybody.tolist()) == of.candidates.tolist()  # all there are where they are too few
    nobody = pool(30, 20, 0.0, intervals=[[(50, 60)]] * 30)
    assert len(selector.select(nobody, 4, state)) == 0


@pytest.mark.parametrize("name", selection.SELECTORS)
def test_all_follow_from_the_seed_and_what_they_were_told(name):
    selector = selection.build({"name": name, **OPTIONS.get(name, {})}, None)

    def run(seed):
        state, found = selector.begin(np.arange(1, 41)), []
        for number in range(1, 8):
            chosen = selector.select(pool(40, number, seed=seed, sizes=np.arange(1, 41)), 5, state)
            selector.learn(state, told(np.sort(chosen), loss=np.sort(chosen)), number)
            found.append(sorted(chosen.tolist()))
        return found

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_uniform_without_absence_is_the_plain_draw():
    for number in range(1, 20):
        assert Uniform().select(pool(50, number), 7, {}).tolist() == uniform(50, 7, seed=0, round=number).tolist()


@pytest.mark.parametrize("online", [30, 3])
def test_uniform_is_uniform_over_those_online(online):
    """Of 60 clients many or few are online, so that it draws and passes over, or looks at all."""
    intervals = [[(0, 50)] if k < online else [(50, 100)] for k in range(60)]
    found = counts(Uniform(), lambda number: pool(60, number, intervals=intervals), 4000, 2)
    assert set(found) == set(range(online))
    expected = 4000 * 2 / online
    assert max(abs(c - expected) for c in found.values()) < 5 * np.sqrt(expected)


def test_by_size_is_in_proportion():
    found = counts(BySize(), lambda number: pool(4, number, sizes=[1, 2, 3, 4]), 5000, 1)
    assert [found[k] / 5000 for k in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.025)


def test_by_availability_evens_participation_out():
    """One is online all of the time, one a fifth of it; both when the other is: in the long run they are drawn alike."""
    intervals = [[(0, 100)], [(0, 20)], [(20, 100)]]

    def make(number):
        return pool(3, number, now=float(number % 100), intervals=intervals)

    found = counts(ByAvailability(), make, 6000, 1)
    assert found[1] / 6000 == pytest.approx(0.2 * (1 / 0.2) / (1 / 0.2 + 1), abs=0.02)
    plain = counts(ByAvailability(power=0.0), make, 6000, 1)
    assert plain[1] / 6000 == pytest.approx(0.2 / 2, abs=0.02)


def test_round_robin_gives_everybody_a_turn():
    """Of ten, three a round: nobody waits for more than four rounds, or is asked twice within three."""
    selector, state, last = RoundRobin(), RoundRobin().begin(np.ones(10)), {}
    for number in range(1, 30):
        chosen = selector.select(pool(10, number), 3, state)
        selector.learn(state, told(chosen), number)
        assert all(3 <= number - last.get(k, number - 3) <= 4 for k in chosen.tolist())
        last |= dict.fromkeys(chosen.tolist(), number)
        assert number < 4 or len(last) == 10


def test_power_of_choice_takes_the_highest_losses_of_some():
    selector, state = PowerOfChoice(candidates=10), PowerOfChoice(candidates=10).begin(np.ones(10))
    selector.learn(state, told(np.arange(10), loss=np.arange(10)), 1)
    assert sorted(selector.select(pool(10, 2), 3, state)) == [7, 8, 9]  # d is all of them
    selector.learn(state, told([9], arrived=[False], loss=[np.nan]), 2)
    assert state["loss"][9] == 9  # one that did not arrive has told nothing
    unknown = selector.begin(np.ones(10))
    selector.learn(unknown, told([0, 1, 2, 3, 4, 5, 6], loss=[1e6] * 7), 1)
    assert sorted(selector.select(pool(10, 2), 3, unknown)) == [7, 8, 9]  # nothing is known of them
    few = counts(PowerOfChoice(candidates=3), lambda number: pool(10, number), 3000, 3)
    assert max(few.values()) < 1.25 * min(few.values())  # d = K is sampling by size


def test_fedcs_by_hand():
    """Uploads take 2 s each, one after the other; downloading and computing 1, 2, 5, 20 s. Within 9 s: 1 + 2, then 2 more, then
    the third is ready when the channel is free at 5, and 2 more: 7 s. The fourth would end at 22 s.
    """
    seconds = np.array([1.0, 2.0, 5.0, 20.0], dtype=np.float32)
    kbps = np.full(4, 0.4, dtype=np.float32)  # 100 bytes in 2 s
    of = Population(1000 * seconds, np.full(4, 1e9, dtype=np.float32), kbps, of_intervals([[(0, 100)]] * 4, 100))
    chosen = FedCS(deadline=9.0, share=1.0).select(Pool(1, 0, np.ones(4), 0.0, of, WORK), 4, {})
    assert chosen.tolist() == [0, 1, 2]
    assert FedCS(deadline=6.9, share=1.0).select(Pool(1, 0, np.ones(4), 0.0, of, WORK), 4, {}).tolist() == [0, 1]
    assert FedCS(deadline=9.0, share=1.0).select(Pool(1, 0, np.ones(4), 0.0, of, WORK), 2, {}).tolist() == [0, 1]
    assert FedCS(deadline=2.9, share=1.0).select(Pool(1, 0, np.ones(4), 0.0, of, WORK), 4, {}).tolist() == []


def test_pyramidfl_by_hand():
    """T is the longest that is known of, 100 s. 10 s leave room for 9 more times, 30 s for 2, 60 s for none; with beta 2 for 18, of
    which 9 are allowed, 4 and 1.
    """
    of = pool(4, seconds=[10, 30, 60, 100])
    state = PyramidFL(preferred=100.0).begin(np.ones(4))
    PyramidFL().learn(state, told(np.arange(4)), 1)
    assert PyramidFL().stretch(of, np.arange(4), state).tolist() == [10, 3, 1, 1]
    assert PyramidFL(beta=2.0).stretch(of, np.arange(4), state).tolist() == [10, 5, 2, 1]
    assert PyramidFL(beta=0.0).stretch(of, np.arange(4), state).tolist() == [1, 1, 1, 1]


def test_refl_prefers_those_that_will_be_gone():
    """mu is 10: who is online least from 10 to 20 comes first. After rounds of 30 s mu is 0.75 x 30 + 0.25 x 10 = 25."""
    intervals = [[(0, 100)], [(0, 12)], [(0, 5), (15, 20)], [(0, 18)]]
    selector = REFL(begin_seconds=10.0, hold=0)
    state = selector.begin(np.ones(4))
    assert selector.select(pool(4, 1, intervals=intervals), 1, state).tolist() == [1]
    assert sorted(selector.select(pool(4, 1, intervals=intervals), 2, selector.begin(np.ones(4)))) == [1, 2]
    selector.select(pool(4, 2, now=30.0), 1, state)
    assert state["mu"][0] == pytest.approx(25)
    held = REFL(begin_seconds=10.0, hold=3)
    state = held.begin(np.ones(4))
    held.learn(state, told([1, 2]), 1)
    assert sorted(held.select(pool(4, 2, intervals=intervals), 2, state)) == [0, 3]


def test_names_and_ones_own(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'oort'"):
        selection.resolve("ort", tmp_path)
    (tmp_path / "mine.py").write_text(
        "from fedloom import Selector\n\n\nclass First(Selector):\n    def select(self, pool, count, state):\n"
        "        return pool.candidates[:count]\n\n\nother = 3\n"
    )
    own = selection.build({"name": "mine:First"}, tmp_path)
    assert own.select(Pool(1, 0, np.ones(5)), 2, {}).tolist() == [0, 1]
    with pytest.raises(UsageError, match="is no selector"):
        selection.resolve("mine:other", tmp_path)


def test_equal_devices_are_all_there():
    of = Pool(1, 0, np.ones(5), 1e6, alike(5, ms_per_sample=1, down_kbps=1, up_kbps=1), WORK)
    assert of.candidates.tolist() == [0, 1, 2, 3, 4] and of.are_online(np.array([4, 2])).all()
