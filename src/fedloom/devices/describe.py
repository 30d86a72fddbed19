"""Devices in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.population import Population

__all__ = ["HOURS", "describe"]

_QUANTILES = {"min": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "max": 1.0}
HOURS = 168
"""Hours of which it is told how many devices are online, at most."""


def describe(population: Population) -> dict[str, Any]:
    """How speeds and the time online spread over the devices, and the share that is online hour by hour."""
    own = population.availability
    spread: dict[str, NDArray[Any]] = {
        "ms_per_sample": population.ms_per_sample,
        "down_kbps": population.down_kbps,
        "up_kbps": population.up_kbps,
        "online_share": own.online_share,
    }
    hours = min(HOURS, max(1, own.period // 3600))
    return {
        "devices": len(population),
        "period_s": own.period,
        **{
            name: {label: float(np.quantile(values, q)) for label, q in _QUANTILES.items()}
            for name, values in spread.items()
        },
        "never_online": int((own.online_share == 0).sum()),
        "online_by_hour": [float(own.online(3600.0 * hour).mean()) for hour in range(hours)],
    }
