"""How a metric is spread over the clients: its mean, its worst tenth, its deciles, its deviation. From 1 to 100,000 clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedloom.tracking.report.drawing import COLOURS, CYCLE, MUTED
from fedloom.tracking.report.wording import lower_is_better

if TYPE_CHECKING:
    from fedloom.tracking.report.summary import ClientResults

__all__ = ["Distribution", "distributions", "worst_tenth"]


@dataclass(frozen=True)
class Distribution:
    """One set of values, a value a client, ascending."""

    label: str
    colour: str
    metric: str
    values: NDArray[np.float64]

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def worst(self) -> float:
        """The mean over the worst tenth of the clients."""
        return worst_tenth(self.values, self.metric)

    @property
    def deciles(self) -> list[float]:
        """The nine values below which lie 10%, 20%, ... 90% of the clients."""
        return [float(q) for q in np.quantile(self.values, np.arange(1, 10) / 10)]

    @property
    def deviation(self) -> float:
        """The standard deviation over the clients, the root of the mean squared distance from the mean."""
        return float(self.values.std())


def worst_tenth(values: Sequence[float] | NDArray[np.float64], metric: str) -> float:
    """The mean of the worst tenth of some values, of at least one."""
    worst_first = np.sort(values)[:: -1 if lower_is_better(metric) else 1]
    return float(worst_first[: max(1, round(0.1 * len(worst_first)))].mean())


def distributions(results: ClientResults) -> list[Distribution]:
    """After training, before it, and each client alone, over the clients that trained; and those that never did."""
    seen = [c for c in results.everyone if not c.unseen]
    unseen = [c for c in results.everyone if c.unseen]
    rows = [
        ("After training", COLOURS["run"], [c.after for c in seen]),
        ("Unseen clients", CYCLE[3], [c.after for c in unseen]),
        ("Before training", MUTED, [c.before for c in seen]),
        ("Trained alone", COLOURS["local"], [c.alone for c in seen]),
    ]
    found = [(label, colour, [v for v in values if v is not None]) for label, colour, values in rows]
    return [Distribution(name, colour, results.metric, np.sort(values)) for name, colour, values in found if values]
