"""Devices drawn at random, with the shapes that were published of real ones.

    ms_per_sample   log-normals: a quarter of the phones fast (median 25 ms), half middling (80 ms), a quarter slow (200 ms)
    down_kbps       log-normal, median 6,000, sigma 1, from 100 to 150,000; up_kbps is 0.3 to 1 of it
    availability    charging at night (a habit of each owner's, about 23 h, about 7 h long, 4 nights of 5) and short sessions by day
                    (Poisson, 1.5 a day, median 15 minutes, long tail); 7% of the devices are never online

A phone is available while it charges (as in FLASH, Yang et al. 2021; the speeds span those of AI Benchmark, the links those of
MobiPerf, which FedScale, Lai et al. 2022, took). Size of a client's data, speed and time online go together through a Gaussian
copula: z_i = rho z_size + sqrt(1 - rho^2) e_i, and each marginal is dealt out in the order of its z_i.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedloom.devices.availability import Availability, always
from fedloom.devices.population import Population
from fedloom.vector.streams import stream

__all__ = ["generate"]

DAY = 86_400
HOUR = 3_600
_CLASSES = ((25.0, 0.35, 0.25), (80.0, 0.4, 0.5), (200.0, 0.4, 0.25))  # median ms, sigma, share
_NEVER = 0.07
_ZONES = 3  # hours over which time zones spread

Array = NDArray[np.float64]


def generate(
    devices: int,
    *,
    seed: int,
    sizes: NDArray[np.int64] | None = None,
    correlation: float = 0.0,
    days: int = 7,
    online: bool = True,
    cost: float = 1.0,
) -> Population:
    """A population of so many devices; with `online` false they differ in speed alone.

    sizes: `[N]`, the rows of each client, with which speed and time online go together by `correlation`, in [0, 1].
    """
    ties = stream(seed, "devices", "sizes").random(devices)
    size = _ranks(np.lexsort((ties, np.zeros(devices) if sizes is None else sizes)))
    normal = _normal_scores(size)
    share = np.sqrt(1 - correlation**2)

    def order(name: str) -> NDArray[np.int64]:
        """`[N]`: each client's place among all, from the least to the most."""
        own = stream(seed, "devices", name).standard_normal(devices)
        return _ranks(np.argsort(correlation * normal + share * own, kind="stable"))

    slow = np.sort(_milliseconds(devices, seed))[::-1]  # the more data, the fewer milliseconds
    down = _kbps(devices, seed)
    up = down * stream(seed, "devices", "up").uniform(0.3, 1.0, devices)
    availability = always(devices)
    if online:
        drawn = _availability(devices, days, seed)
        availability = drawn.take(np.argsort(drawn.online_share, kind="stable")[order("online")])
    compute, receive, send = (values.astype(np.float32) for values in (slow[order("speed")], down, up))
    return Population(compute, receive, send, availability, cost)


def _milliseconds(devices: int, seed: int) -> Array:
    """Milliseconds of a forward pass over one sample."""
    random = stream(seed, "devices", "milliseconds")
    kind = random.choice(len(_CLASSES), size=devices, p=[share for *_, share in _CLASSES])
    median, sigma, _ = np.array(_CLASSES).T
    drawn: Array = median[kind] * np.exp(sigma[kind] * random.standard_normal(devices))
    return drawn


def _kbps(devices: int, seed: int) -> Array:
    random = stream(seed, "devices", "down")
    drawn: Array = np.clip(6_000 * np.exp(random.standard_normal(devices)), 100, 150_000)
    return drawn


def _availability(devices: int, days: int, seed: int) -> Availability:
    """Nights and days of each device's owner, merged where they overlap."""
    random = stream(seed, "devices", "availability")
    habit = 23 * HOUR + 1.5 * HOUR * random.standard_normal(devices) + HOUR * random.integers(0, _ZONES, devices)
    keen = random.beta(4, 1, devices)  # in how many nights of all
    busy = random.exponential(1.5, devices)  # sessions a day
    never = random.random(devices) < _NEVER

    plugged = (random.random((devices, days)) < keen[:, None]) & ~never[:, None]
    owners, night = np.nonzero(plugged)
    starts = night * DAY + habit[owners] + 0.5 * HOUR * random.standard_normal(len(owners))
    lengths = 7.5 * HOUR * np.exp(0.35 * random.standard_normal(len(owners)))

    sessions = np.where(never, 0, random.poisson(busy * days))
    by_day = np.repeat(np.arange(devices), sessions)
    begun = random.random(len(by_day)) * days * DAY
    short = 0.25 * HOUR * np.exp(1.5 * random.standard_normal(len(by_day)))
    return _merged(
        devices, days * DAY, np.r_[owners, by_day], np.r_[starts, begun].astype(np.int64), np.r_[lengths, short]
    )


def _merged(
    devices: int, period: int, owners: NDArray[np.int64], starts: NDArray[np.int64], lengths: Array
) -> Availability:
    """Sessions as sorted intervals that are apart; what goes beyond the period begins it."""
    starts = starts % period
    ends = starts + np.clip(lengths, 10, period).astype(np.int64)
    over = ends > period
    owners = np.r_[owners, owners[over]]
    starts, ends = np.r_[starts, np.zeros(over.sum(), np.int64)], np.r_[np.minimum(ends, period), ends[over] - period]
    begin = owners * period + starts  # on one line, a device after the other
    order = np.argsort(begin, kind="stable")
    begin, owners = begin[order], owners[order]
    reached = np.maximum.accumulate(owners * period + ends[order])
    first = np.r_[True, (begin[1:] > reached[:-1]) | (owners[1:] != owners[:-1])][: len(begin)]
    last = np.r_[np.flatnonzero(first)[1:] - 1, len(begin) - 1][: first.sum()]
    owner = owners[first]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=devices))])
    return Availability(
        period,
        offsets,
        (begin[first] - owner * period).astype(np.int32),
        (reached[last] - owner * period).astype(np.int32),
    )


def _ranks(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each one's place in an order."""
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order))
    return ranks


def _normal_scores(ranks: NDArray[np.int64]) -> Array:
    """The standard normal's quantiles at the places of the ranks."""
    scores: Array = torch.special.ndtri(torch.from_numpy((ranks + 0.5) / len(ranks))).numpy()
    return scores
