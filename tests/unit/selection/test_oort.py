"""Oort, hand-checked on three clients, and its parts one by one."""

import numpy as np
import pytest
from pools import WORK, population, told

from fedloom.selection.oort import Oort
from fedloom.selection.pool import Feedback, Pool


def pool(seconds, round=1, seed=0):
    return Pool(round, seed, np.ones(len(seconds)), 0.0, population(len(seconds), seconds=seconds), WORK)


def known(selector, samples, squares, n=None, round=1):
    """The state after a round in which the first clients trained on so many rows with such mean squares of losses."""
    state = selector.begin(np.ones(n or len(samples)))
    selector.learn(state, told(np.arange(len(samples)), samples=samples, square=squares), round)
    return state


def test_utilities_by_hand():
    """U = |B| sqrt(mean l^2): 10 sqrt(4) = 20, 5 sqrt(9) = 15, 2 sqrt(1) = 2; clipped at the median, 15.

    In round 3 the bonus is sqrt(0.1 ln 3 / 1) = 0.33145 for all. They take 10, 20 and 40 s; T is their median, 20, so the third
    loses (20 / 40)^2.
    """
    selector = Oort(clip=0.5, preferred=50.0)
    state = known(selector, [10, 5, 2], [4.0, 9.0, 1.0])
    assert state["utility"].tolist() == [20, 15, 2]
    util = selector.utilities(np.arange(3), pool([10, 20, 40], 3), state)
    bonus = np.sqrt(0.1 * np.log(3))
    assert util.tolist() == pytest.approx([15 + bonus, 15 + bonus, (2 + bonus) / 4])


def test_long_ago_is_worth_more():
    selector = Oort(clip=1.0, preferred=100.0)
    state = known(selector, [1, 1], [1.0, 1.0], round=1)
    selector.learn(state, told([1], samples=[1], square=[1.0]), 8)
    util = selector.utilities(np.arange(2), pool([1, 1], 10), state)
    assert util.tolist() == pytest.approx([1 + np.sqrt(0.1 * np.log(10) / 1), 1 + np.sqrt(0.1 * np.log(10) / 8)])


def test_the_penalty_begins_at_the_preferred_duration():
    state = known(Oort(preferred=100 / 3), [1] * 4, [1.0] * 4)
    seconds = [10, 20, 30, 40]
    for penalty in (0.0, 1.0, 2.0):
        util = Oort(penalty=penalty).utilities(np.arange(4), pool(seconds, 1), state)
        assert (util / util[0]).tolist() == pytest.approx([1, 1, (20 / 30) ** penalty, (20 / 40) ** penalty])


def test_fairness_trades_utility_for_those_chosen_least():
    selector = Oort(clip=1.0, penalty=0.0)
    state = known(selector, [4, 2], [1.0, 1.0])
    selector.learn(state, told([0], samples=[4], square=[1.0]), 1)  # twice by now, the other once
    of = pool([1, 1], 1)
    assert Oort(clip=1.0, penalty=0.0, fairness=1.0).utilities(np.arange(2), of, state).tolist() == [0, 1]
    half = Oort(clip=1.0, penalty=0.0, fairness=0.5).utilities(np.arange(2), of, state)
    assert half.tolist() == pytest.approx([0.5 * 1, 0.5 * 0.5 + 0.5])


def test_the_first_round_explores_by_speed():
    selector, state = Oort(), Oort().begin(np.ones(2))
    chosen = [int(selector.select(pool([1.0, 3.0], seed=seed), 1, state)[0]) for seed in range(2000)]
    assert np.mean(chosen) == pytest.approx(0.25, abs=0.03)  # 1 / 3 against 1


def test_exploration_decays_to_its_least():
    """Ten clients are known, ten are not, and ten are wanted."""
    selector = Oort(exploration=0.9, exploration_decay=0.5, exploration_min=0.2)
    new = []
    for number in range(1, 6):
        state = known(selector, [1] * 10, [1.0] * 10, n=20)
        chosen = selector.select(pool([1.0] * 20, number), 10, state)
        new.append(int((chosen >= 10).sum()))
    assert new == [9, 4, 2, 2, 2]


def test_exploitation_is_above_the_cutoff_and_in_proportion():
    """Wanted is one, of utilities 1, 10, 19 and 20: the cut is at 0.95 x 20, and the two above are drawn as 19 to 20."""
    selector = Oort(exploration=0.0, exploration_min=0.0, clip=1.0, penalty=0.0)
    state = known(selector, [1] * 4, [1.0, 100.0, 361.0, 400.0])
    chosen = [int(selector.select(pool([1.0] * 4, 1, seed), 1, state)[0]) for seed in range(2000)]
    assert set(chosen) == {2, 3}
    assert np.mean(np.array(chosen) == 3) == pytest.approx(20 / 39, abs=0.04)
    proportional = Oort(exploration=0.0, exploration_min=0.0, clip=1.0, penalty=0.0, cutoff=0.0)
    chosen = [int(proportional.select(pool([1.0] * 4, 1, seed), 1, state)[0]) for seed in range(3000)]
    assert [chosen.count(k) / 3000 for k in range(4)] == pytest.approx([0.02, 0.2, 0.38, 0.4], abs=0.03)


def test_who_did_not_arrive_is_known_with_the_mean_utility():
    selector = Oort()
    state = selector.begin(np.ones(4))
    arrived = np.array([True, True, False])
    nan = float("nan")
    selector.learn(
        state, Feedback(np.arange(3), arrived, np.array([2, 4, 0]), np.ones(3), np.array([1.0, 1.0, nan])), 5
    )
    assert state["utility"].tolist() == [2, 4, 3, 0] and state["last"].tolist() == [5, 5, 5, 0]
    again = Feedback(
        np.array([0, 3]), np.array([False, True]), np.array([0, 9]), np.array([nan, 1.0]), np.array([nan, 1.0])
    )
    selector.learn(state, again, 6)
    assert state["utility"][3] == 9
    assert state["utility"][0] == 2 and state["last"][0] == 5  # keeps what it told
    assert state["chosen"].tolist() == [2, 1, 1, 1]


def test_the_pacer_grows_when_utility_falls():
    selector = Oort(pacer_window=2, pacer_step=10.0, preferred=30.0)
    state, seen = selector.begin(np.ones(1)), []
    for number, gained in enumerate([5, 5, 3, 3, 4, 4, 1, 1, 1, 1], start=1):
        selector.learn(state, told([0], samples=[gained], square=[1.0]), number)
        seen.append(float(state["preferred"][0]))
    assert seen == [30, 30, 30, 40, 40, 40, 40, 50, 50, 50]


def test_the_blacklist():
    selector = Oort(blacklist=2)
    state = selector.begin(np.ones(5))
    for number in (1, 2):
        selector.learn(state, told([0, 1]), number)
    assert set(selector.select(pool([1.0] * 5, 3), 5, state).tolist()) == {2, 3, 4}
