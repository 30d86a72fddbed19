"""What clients' devices did: a timeline of the first rounds, and what of it was of use."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np

from fedloom.tracking.reading import Record, RunFiles
from fedloom.tracking.report.drawing import CYCLE, INK, MUTED, sheet, to_svg
from fedloom.tracking.report.figures import WIDE
from fedloom.tracking.report.partition_figures import Picture
from fedloom.tracking.report.summary import Tile, total
from fedloom.tracking.report.wording import clock_unit, count, duration, plural, size

__all__ = ["device_tiles", "timeline"]

MOST_BARS = 160
_FATES = {"ok": ("arrived", CYCLE[0]), "late": ("late", CYCLE[1]), "offline": ("went offline", CYCLE[5])}


class _Bar(NamedTuple):
    """A client at work, in virtual seconds."""

    round: int
    began: float
    seconds: float
    fate: str


def device_tiles(run: RunFiles) -> list[Tile]:
    """What the devices did in numbers; none where nothing is known of them."""
    asked = total(run, "asked")
    if not asked:
        return []
    useful, wasted = total(run, "device_seconds") or 0.0, total(run, "wasted_seconds") or 0.0
    late, offline = (round(total(run, key) or 0) for key in ("late", "offline"))
    sent = (total(run, "wasted_bytes_down") or 0.0) + (total(run, "wasted_bytes_up") or 0.0)
    turns = Counter(str(r["client"]) for r in run.client_records() if r.get("status") == "ok")
    clients = len(run.partition.get("clients") or []) or len(turns)
    parts = np.sort(np.array([*turns.values(), *[0] * (clients - len(turns))], dtype=float))[::-1]
    jain = parts.sum() ** 2 / (len(parts) * (parts**2).sum()) if parts.any() else 0.0
    top = parts[: max(1, round(0.3 * len(parts)))].sum() / max(parts.sum(), 1.0)
    return [
        Tile("Asked", count(asked), f"{late:,} late, {offline:,} went offline"),
        Tile("Devices at work", duration(useful + wasted), f"{wasted / max(useful + wasted, 1e-9):.0%} of it wasted"),
        Tile("Sent in vain", size(sent), "both ways"),
        Tile("Took part", f"{len(turns):,} of {plural(clients, 'client')}", f"the busiest 30% did {top:.0%}"),
        Tile("Fairness", f"{jain:.2f}", "Jain's index of the updates a client: 1 when all have as many"),
    ]


def timeline(run: RunFiles, name: str = "timeline") -> Picture | None:
    """A bar a client from when it was asked until it was done, or stopped; None where nothing is known of devices."""
    bars = _bars(run)
    if not bars:
        return None
    begin, end = min(bar.began for bar in bars), max(bar.began + bar.seconds for bar in bars)
    unit, word = clock_unit(end - begin)
    row = min(14.0, max(3.0, 420.0 / len(bars)))
    height = row * len(bars) + 78
    with sheet(WIDE, height) as figure:
        axes = figure.add_axes((50 / WIDE, 46 / height, (WIDE - 70) / WIDE, (height - 78) / height))
        for fate, (_, colour) in _FATES.items():
            own = [(k, bar) for k, bar in enumerate(bars) if bar.fate == fate]
            axes.barh([k for k, _ in own], [bar.seconds / unit for _, bar in own],
                      left=[bar.began / unit for _, bar in own], height=0.72, color=colour)  # fmt: skip
        firsts = [k for k, bar in enumerate(bars) if k == 0 or bars[k - 1].round != bar.round]
        for k in firsts[1:]:
            axes.axhline(k - 0.5, color=MUTED, linewidth=0.6, alpha=0.5)
        every = max(1, int(np.ceil(13 / (row * len(bars) / len(firsts)))))
        axes.set_yticks(list(firsts[::every]), [str(bars[k].round) for k in firsts[::every]], color=INK)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_ylabel("Round")
        axes.set_xlabel(f"Virtual {word}")
        axes.grid(False, axis="y")
        axes.grid(True, axis="x")
        for k, (label, colour) in enumerate(_FATES.values()):
            figure.text((50 + 120 * k) / WIDE, 1 - 14 / height, label, va="center", color=colour, fontweight="bold")
        rounds = len({bar.round for bar in bars})
        said = f"What became of the clients asked in the first {plural(rounds, 'round')}"
        caption = (
            f"The first {plural(rounds, 'round')}: a bar is a client that was asked, from then until its update had arrived, or "
            "the round was over, or it went offline."
        )
        return Picture(to_svg(figure, said, name), caption, figure)


def _bars(run: RunFiles) -> list[_Bar]:
    """The clients of the first rounds, as many rounds as have room."""
    by_round: dict[int, list[_Bar]] = {}
    for record in run.client_records():
        if bar := _bar(record):
            if bar.round not in by_round and sum(map(len, by_round.values())) >= MOST_BARS:
                break
            by_round.setdefault(bar.round, []).append(bar)
    bars: list[_Bar] = []
    for own in by_round.values():
        if bars and len(bars) + len(own) > MOST_BARS:
            break
        bars += sorted(own, key=lambda bar: (bar.began, bar.seconds))[:MOST_BARS]
    return bars


def _bar(record: Record) -> _Bar | None:
    began, seconds, fate = record.get("virtual_began"), record.get("virtual_seconds"), record.get("status")
    if began is None or seconds is None or fate not in _FATES:
        return None
    return _Bar(int(record["round"]), float(began), float(seconds), str(fate))
