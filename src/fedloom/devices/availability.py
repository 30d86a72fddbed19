"""When devices are online: intervals on a period that repeats. Every question is a bisection; nothing is remembered between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Availability", "Clients", "always", "of_intervals"]

Clients = NDArray[np.int64]
"""Numbers of clients, in any order."""


@dataclass(frozen=True)
class Availability:
    """Device k is online from `starts[i]` until before `ends[i]`, for offsets[k] <= i < offsets[k + 1], in seconds modulo `period`.

    A device's intervals are sorted and apart. What ends with the period and what begins with it is one interval.
    """

    period: int
    offsets: NDArray[np.int64]
    starts: NDArray[np.int32]
    ends: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def online_share(self) -> NDArray[np.float64]:
        """`[N]`: the share of the period that each device is online."""
        return np.diff(self._sums[self.offsets]) / self.period

    def online(self, at: float) -> NDArray[np.bool_]:
        """`[N]`: who is online at a time."""
        phase = int(at % self.period)  # intervals are of whole seconds
        now = np.flatnonzero((self.starts <= phase) & (self.ends > phase))
        found = np.zeros(len(self), dtype=bool)
        found[self._owners[now]] = True
        return found

    def until(self, clients: Clients, at: float) -> NDArray[np.float64]:
        """`[m]`: the time at which each of these clients next goes offline; `at` itself where it is offline, inf for never."""
        periods, phase = divmod(at, self.period)
        begun, place, first = periods * self.period, self._last_begun(clients, int(phase)), self.offsets[clients]
        end, first_end = self._end(place), self._end(first)
        held = (place >= first) & (phase < end)
        again = held & (end == self.period) & (self._start(first) == 0)  # goes on where the period begins anew
        left = np.where(again, begun + self.period + first_end, begun + end)
        left = np.where(again & (first_end == self.period), np.inf, left)
        return np.where(held, left, at)

    def share_online(self, clients: Clients, begin: float, end: float) -> NDArray[np.float64]:
        """`[m]`: the share of the time from begin to end that each of these clients is online."""
        online = self._seconds_online(clients, end) - self._seconds_online(clients, begin)
        share: NDArray[np.float64] = online / (end - begin)
        return share

    def next_start(self, at: float) -> float | None:
        """The first time after this at which a device comes online; None where none ever does."""
        if not len(self.starts):
            return None
        periods, phase = divmod(at, self.period)
        later = self.starts[self.starts > phase]
        return periods * self.period + float(later.min() if len(later) else self.starts.min() + self.period)

    def take(self, devices: Clients) -> Availability:
        """The same for these devices, in this order; one may be taken more than once."""
        counts = np.diff(self.offsets)[devices]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[devices], counts)
        return Availability(self.period, offsets, self.starts[places], self.ends[places])

    @cached_property
    def _owners(self) -> NDArray[np.int32]:
        """The device of each interval."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        """The seconds of all intervals before each place."""
        return np.concatenate([[0], np.cumsum(self.ends - self.starts, dtype=np.int64)])

    def _seconds_online(self, clients: Clients, at: float) -> NDArray[np.float64]:
        """`[m]`: for how long each has been online since time 0."""
        periods, phase = divmod(at, self.period)
        first, place = self.offsets[clients], self._last_begun(clients, int(phase))
        begun = place >= first
        last = np.where(begun, np.minimum(phase, self._end(place)) - self._start(place), 0.0)
        earlier = np.where(begun, self._sums[np.maximum(place, 0)] - self._sums[first], 0)
        whole = periods * (self._sums[self.offsets[clients + 1]] - self._sums[first]).astype(np.float64)
        return np.asarray(whole + earlier + last, dtype=np.float64)

    def _last_begun(self, clients: Clients, phase: int) -> NDArray[np.int64]:
        """The place of each client's last interval that has begun by this phase; one before its first where none has."""
        low, high = self.offsets[clients], self.offsets[clients + 1]
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            begun = (low < high) & (self._start(middle) <= phase)
            low, high = np.where(begun, middle + 1, low), np.where(begun, high, np.where(low < high, middle, high))
        return low - 1

    def _start(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._at(self.starts, places)

    def _end(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._at(self.ends, places)

    def _at(self, values: NDArray[np.int32], places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The values at these places, some of which may be outside and are not used."""
        if not len(values):
            return np.full(len(places), -1, dtype=np.int64)
        return values[np.clip(places, 0, len(values) - 1)].astype(np.int64)


def always(devices: int) -> Availability:
    """Devices that never go offline."""
    return of_intervals([[(0, 1)]] * devices, 1)


def of_intervals(intervals: Sequence[Sequence[tuple[int, int]]], period: int) -> Availability:
    """The availability of devices from each one's intervals."""
    offsets = np.concatenate([[0], np.cumsum([len(own) for own in intervals], dtype=np.int64)])
    flat = np.array([pair for own in intervals for pair in own], dtype=np.int32).reshape(-1, 2)
    return Availability(period, offsets, flat[:, 0].copy(), flat[:, 1].copy())
