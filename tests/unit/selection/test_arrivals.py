"""The order of arrival: by hand, by law, and the same whatever happens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.schema import ConstantArrivals, Federation, LognormalArrivals
from fedloom.errors import UsageError
from fedloom.selection.arrivals import AlwaysThere, Arrivals, Lognormal
from fedloom.selection.pool import uniform
from fedloom.selection.schedule import make_schedule
from fedloom.selection.synchronous import Synchronous
from fedloom.selection.uniform import Uniform


class Given(AlwaysThere):
    """Clients that take as long as is written here."""

    def __init__(self, **seconds):
        self.times = seconds

    def seconds(self, client, name, version, now):
        return self.times[name], True


def named(n):
    return {k: f"c{k}" for k in range(n)}


def lognormal(n, in_flight, buffer, seed=0):
    settings = Federation(rounds=1, clients_per_round=in_flight)
    return scheduled(settings, n, buffer, seed)


def scheduled(settings, n, buffer, seed):
    return make_schedule(settings, named(n), buffer, selector=Uniform(), sizes=np.ones(n, dtype=int), seed=seed)


def facts(cohort):
    return dict(cohort.started), set(cohort.needed), cohort.seconds


def test_three_clients_by_hand():
    """a takes 1 s, b 2 s, c 5 s; all three are under way; the server waits for two.

    0 s  a, b, c start from 0
    1 s  a arrives, and waits in the buffer
    2 s  b arrives: version 1; a and b start from 1
    3 s  a arrives;   4 s  b arrives: version 2; both start from 2
    5 s  c, which was sent first, and a arrive: version 3; both start from 3
    6 s  b, which was sent first, and a arrive: version 4, while c is under way from 3
    """
    schedule = Arrivals({0: "a", 1: "b", 2: "c"}, None, 2, Given(a=1.0, b=2.0, c=5.0), seed=0)
    made = [schedule.round(number) for number in (1, 2, 3, 4)]
    assert [facts(cohort) for cohort in made] == [
        ({0: [0, 1]}, {0}, 2.0),
        ({1: [0, 1]}, {0}, 4.0),
        ({0: [2], 2: [0]}, {2}, 5.0),
        ({2: [1], 3: [0]}, {3}, 6.0),
    ]
    assert [[cohort.staleness(v) for v in cohort.started] for cohort in made] == [[0], [0], [2, 0], [1, 0]]
    assert [cohort.mean_staleness for cohort in made] == [0.0, 0.0, 1.0, 0.5]


def test_arriving_together():
    """Four under way, three awaited: the fourth goes into the next buffer, and is not asked again while it waits there."""
    schedule = Arrivals(named(4), 4, 3, Given(c0=1.0, c1=1.0, c2=1.0, c3=1.0), seed=0)
    assert [facts(schedule.round(number)) for number in (1, 2, 3)] == [
        ({0: [0, 1, 2]}, {0}, 1.0),
        ({0: [3], 1: [0, 1]}, {1}, 2.0),
        ({1: [2], 2: [0, 1]}, {2}, 3.0),
    ]


def test_the_numbers_are_those_of_the_clients_given():
    """Some clients of a federation never train: those that do keep their numbers."""
    schedule = Arrivals({3: "a", 7: "b"}, None, 1, Given(a=1.0, b=1.5), seed=0)
    assert [dict(schedule.round(number).started) for number in (1, 2, 3)] == [{0: [3]}, {0: [7]}, {1: [3]}]
    plain = Synchronous(np.array([3, 7]), None, Uniform(), 0, np.ones(2, dtype=int))
    assert dict(plain.round(5).started) == {4: [3, 7]}


@pytest.mark.parametrize(("n", "in_flight"), [(10, 4), (10, None), (7, 7), (5, 1)])
def test_without_lateness_it_is_the_synchronous_cohort(n, in_flight):
    federation = Federation(rounds=1, clients_per_round=in_flight, arrivals=ConstantArrivals(kind="constant"))
    late = scheduled(federation, n, min(in_flight or n, n), 3)
    plain = scheduled(federation, n, None, 3)
    for number in range(1, 8):
        a, b = late.round(number), plain.round(number)
        assert dict(a.started) == dict(b.started) == {number - 1: uniform(n, in_flight, seed=3, round=number).tolist()}
        assert (a.mean_staleness, set(a.needed), a.seconds, b.seconds) == (0.0, set(), float(number), None)


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 12), st.integers(0, 10**6))
def test_laws(n, in_flight, buffer, seed):
    """K updates a version, no client twice in flight, none started from a version twice, every version kept while needed."""
    in_flight, rounds = min(in_flight, n), 12
    buffer = min(buffer, in_flight)
    schedule = lognormal(n, in_flight, buffer, seed)
    cohorts = [schedule.round(number) for number in range(1, rounds + 1)]
    seen, latest, clock = set(), {}, 0.0
    for cohort in cohorts:
        flat = [(client, version) for version, clients in cohort.started.items() for client in clients]
        assert len(flat) == buffer and list(cohort.started) == sorted(cohort.started)
        for client, version in flat:
            assert 0 <= version < cohort.number and (client, version) not in seen
            assert version >= latest.get(client, 0), "it started after its last update was used"
            seen.add((client, version))
            latest[client] = cohort.number
            assert all(version in cohorts[r - 1].needed for r in range(version + 1, cohort.number))
        assert len(cohort.needed) <= in_flight and all(v < cohort.number for v in cohort.needed)
        assert cohort.seconds >= clock
        clock = cohort.seconds


def test_the_same_whenever_it_is_asked():
    stepwise, jump = lognormal(20, 8, 3), lognormal(20, 8, 3)
    made = [stepwise.round(number) for number in range(1, 31)]
    assert jump.round(30) == made[29] and jump.round(4) == made[3] and jump.round(4) == made[3]
    assert lognormal(20, 8, 3, seed=1).round(30) != made[29]


def test_all_clients_come_to_train():
    schedule = lognormal(20, 8, 3)
    cohorts = [schedule.round(number) for number in range(1, 200)]
    counts = np.bincount(
        [c for cohort in cohorts for clients in cohort.started.values() for c in clients], minlength=20
    )
    assert counts.min() > 0.5 * counts.mean()
    assert np.mean([cohort.mean_staleness for cohort in cohorts]) > 1.0


def test_lognormal_durations():
    """The median, what differs from client to client, and what differs from time to time."""

    def times(clients, versions, **options):
        model = Lognormal(LognormalArrivals(kind="lognormal", **options), seed=0)
        return np.array([[model.seconds(k, f"c{k}", t, 0.0)[0] for t in range(versions)] for k in range(clients)])

    assert (times(3, 3, seconds=2.0, sigma=0.0) == 2.0).all()
    speeds = np.log(times(2000, 2, sigma=0.0, speed_sigma=0.5))
    assert (speeds[:, 0] == speeds[:, 1]).all() and speeds.std() == pytest.approx(0.5, rel=0.1)
    noise = np.log(times(40, 50, seconds=3.0, sigma=0.7) / 3.0)
    assert np.median(noise) == pytest.approx(0.0, abs=0.05) and noise.std() == pytest.approx(0.7, rel=0.1)


def test_a_buffer_that_never_fills_is_refused():
    for in_flight in (None, 5, 50):
        with pytest.raises(UsageError, match="waits for 6 updates, and only 5 clients are under way") as caught:
            lognormal(5, in_flight, 6)
        assert caught.value.where == "algorithm.buffer"
    assert lognormal(5, None, 5).in_flight == 5
