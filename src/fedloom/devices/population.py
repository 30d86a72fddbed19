"""The devices of a federation's clients, as arrays over all of them, and how long work takes there.

    seconds = 8 bytes_down / (1000 down_kbps) + passes ms_per_sample cost / 1000 + 8 bytes_up / (1000 up_kbps)

A kbit is 1000 bits. `passes` counts forward passes over one sample, or what costs as much: a step of backpropagation is 3 a sample
where all layers train. `cost` is what a pass of this model takes over one of the model that ms_per_sample was measured with.
(FedScale, Lai et al. 2022, appendix A; there a step is always 3, and the whole model travels both ways.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.availability import Availability, Clients, always
from fedloom.errors import RunError

__all__ = ["Population", "Times", "Work", "alike"]

Each = float | NDArray[np.float64]
"""One number for all clients, or one for each of the federation, `[N]`."""


class Work(NamedTuple):
    """What a client is asked for in a round, of one client or each of the federation, `[N]`."""

    bytes_down: Each
    passes: Each
    bytes_up: Each


class Times(NamedTuple):
    """The seconds that clients take, `[m]`, in the order in which they spend them."""

    down: NDArray[np.float64]
    compute: NDArray[np.float64]
    up: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """From being asked until the answer has arrived."""
        return self.down + self.compute + self.up


@dataclass(frozen=True)
class Population:
    """The devices, in the order of the federation's clients: all arrays are `[N]`."""

    ms_per_sample: NDArray[np.float32]
    """Milliseconds of a forward pass over one sample."""
    down_kbps: NDArray[np.float32]
    up_kbps: NDArray[np.float32]
    availability: Availability
    cost: float = 1.0
    names: Sequence[str] | None = None
    """Which device each is, where it comes from a file."""

    def __len__(self) -> int:
        return len(self.ms_per_sample)

    def take(self, devices: Clients) -> Population:
        """The population of these devices, in this order."""
        return Population(
            self.ms_per_sample[devices],
            self.down_kbps[devices],
            self.up_kbps[devices],
            self.availability.take(devices),
            self.cost,
            None if self.names is None else [self.names[k] for k in devices],
        )

    def times(self, work: Work, clients: Clients | None = None) -> Times:
        """How long the work takes these clients; all when none are named."""
        part = slice(None) if clients is None else clients

        def of(each: Each) -> Each:
            return each[part] if isinstance(each, np.ndarray) else each

        times: list[NDArray[np.float64]] = [
            of(work.bytes_down) * 0.008 / self.down_kbps[part].astype(np.float64),
            of(work.passes) * 0.001 * self.cost * self.ms_per_sample[part].astype(np.float64),
            of(work.bytes_up) * 0.008 / self.up_kbps[part].astype(np.float64),
        ]
        return Times(*times)

    def first_online(self, now: float) -> float:
        """The first time after this at which somebody comes online; raises RunError where nobody ever does."""
        there = self.availability.next_start(now)
        if there is None:
            what = f"nobody is online, from the virtual second {now:,.0f} on"
            why = f"the clock looked until {now + self.availability.period:,.0f}"
            raise RunError(what, why=why, fix="give other `devices`")
        return there


def alike(devices: int, *, ms_per_sample: float, down_kbps: float, up_kbps: float, cost: float = 1.0) -> Population:
    """Equal devices that never go offline."""

    def each(value: float) -> NDArray[np.float32]:
        return np.full(devices, value, dtype=np.float32)

    return Population(each(ms_per_sample), each(down_kbps), each(up_kbps), always(devices), cost)
