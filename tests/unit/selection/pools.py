"""Pools of devices to select from, and what selectors are told."""

import numpy as np

from fedloom.devices.availability import of_intervals
from fedloom.devices.population import Population, Work
from fedloom.selection.pool import Feedback, Pool

WORK = Work(100.0, 1.0, 100.0)


def population(n, intervals=None, seconds=None):
    """Devices that are online as given, and take so long, nearly all of it computing."""
    speeds = np.full(n, 1000.0) if seconds is None else 1000 * np.asarray(seconds, dtype=float)
    kbps = np.full(n, 1e9, dtype=np.float32)
    return Population(speeds.astype(np.float32), kbps, kbps, of_intervals(intervals or [[(0, 100)]] * n, 100))


def pool(n, round=1, now=0.0, sizes=None, seed=0, **of):
    sizes = np.ones(n, dtype=int) if sizes is None else np.asarray(sizes)
    return Pool(round, seed, sizes, now, population(n, **of), WORK)


def told(clients, arrived=None, loss=None, square=None, samples=None):
    clients = np.asarray(clients)
    n = len(clients)
    return Feedback(
        clients,
        np.ones(n, dtype=bool) if arrived is None else np.asarray(arrived),
        np.ones(n, dtype=int) if samples is None else np.asarray(samples),
        np.ones(n) if loss is None else np.asarray(loss, dtype=float),
        np.ones(n) if square is None else np.asarray(square, dtype=float),
    )
