"""A picture of devices: how fast they compute and send, and when they are online."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.describe import describe
from fedloom.devices.population import Population
from fedloom.tracking.report.drawing import CYCLE, INK, sheet, to_svg
from fedloom.tracking.report.figures import WIDE
from fedloom.tracking.report.partition_figures import Picture

__all__ = ["population_figure"]

_BINS = 36


def population_figure(population: Population, name: str = "devices") -> Picture:
    """Histograms of the speeds, on logarithmic scales, and of the share of time online; who is online, hour by hour."""
    facts = describe(population)
    height, body = 470.0, 150.0
    with sheet(WIDE, height) as figure:

        def panel(column: int, row: int, wide: bool = False) -> Any:
            box = ((50 + 290 * column) / WIDE, (52 + (1 - row) * (body + 82)) / height)
            return figure.add_axes((*box, (830 if wide else 240) / WIDE, body / height))

        _logarithmic(panel(0, 0), "Milliseconds a sample", [population.ms_per_sample], [CYCLE[0]])
        both = [population.down_kbps, population.up_kbps]
        _logarithmic(panel(1, 0), "kbit/s down and up", both, [CYCLE[0], CYCLE[1]])
        share = panel(2, 0)
        share.hist(population.availability.online_share, bins=np.linspace(0, 1, _BINS), color=CYCLE[0])
        share.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
        _title(share, "Share of the time online")
        hours = facts["online_by_hour"]
        line = panel(0, 1, wide=True)
        line.plot(np.arange(len(hours)) / 24, hours, color=CYCLE[0])
        line.set_ylim(0, 1)
        line.set_yticks([0, 0.5, 1], ["0%", "50%", "100%"])
        line.set_xlabel("Days")
        _title(line, "Share of the devices online")
        never = f"{len(population):,} devices, of which {facts['never_online']:,} are never online"
        caption = f"{never}. In the second picture, blue is down and orange is up."
        return Picture(to_svg(figure, "Devices: speeds, links and time online", name), caption, figure)


def _logarithmic(axes: Any, title: str, values: list[NDArray[np.float32]], colours: list[str]) -> None:
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    bins = np.geomspace(low * 0.99, high * 1.01, _BINS)
    for k, (own, colour) in enumerate(zip(values, colours, strict=True)):
        axes.hist(own, bins=bins, color=colour, **({"histtype": "step", "linewidth": 2.2} if k else {}))
    axes.set_xscale("log")
    every = [k * 10.0**power for power in range(-3, 10) for k in (1, 3)]
    shown = [tick for tick in every if low <= tick <= high]
    shown = shown if len(shown) < 5 else shown[shown[0] != 10 ** round(np.log10(shown[0])) :: 2]
    axes.set_xticks(shown, [f"{tick:,g}" for tick in shown])
    _title(axes, title)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, pad=8)
    axes.minorticks_off()
