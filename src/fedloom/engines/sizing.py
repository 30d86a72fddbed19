"""How many clients make a group, and whether they are trained in one batched pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedloom.config.gradient import Backprop
from fedloom.errors import ModelError
from fedloom.local.batches import steps_of
from fedloom.local.prepare import Prepared

__all__ = ["Sizing", "make_groups", "size_groups"]

_ROWS = {"cpu": 512, "cuda": 8192}  # rows of a matrix product beyond which more clients at once gain nothing
_MOST = 64
_IN_PLACE = 16  # clients a group when they train one after the other
_BANK_BYTES = 1 << 30  # at most, for a group's vectors, gradients and two averages
# What one batched pass gains over one client after the other, by the rows of a client's step as a share of _ROWS; measured by
# benchmarks/simulation.py on a CPU.
_SHARE, _GAIN = (1 / 32, 1 / 8, 1 / 2, 1), (3.0, 1.7, 1.1, 1.0)


@dataclass(frozen=True)
class Sizing:
    """The group size, and whether groups are trained batched; why not, where `auto` decided so."""

    group_size: int
    grouped: bool
    reason: str

    @property
    def how(self) -> str:
        """The value of `local.grouping` that would force this."""
        return "grouped" if self.grouped else "in_place"


def size_groups(prepared: Prepared) -> Sizing:
    """Fill the matrix products: G = rows wanted / (batch size x mean length); grouped only if that gains more than padding costs.

    Raises ModelError when grouping is forced on a model that cannot be grouped.
    """
    local, engine = prepared.experiment.local, prepared.experiment.engine
    lengths, wanted = _mean_lengths(prepared), _ROWS[prepared.binding.device.type]
    rows = local.batch_size * float(lengths.mean())
    cohort = min(prepared.experiment.federation.clients_per_round or len(prepared.train), len(prepared.train))
    if prepared.algorithm.asynchronous:
        cohort = min(prepared.algorithm.awaits(), cohort)
    room = max(1, _BANK_BYTES // (16 * prepared.binding.layout.n))
    auto = max(1, min(int(wanted // rows), _MOST, cohort, room))
    size = auto if engine.group_size == "auto" else min(engine.group_size, cohort)
    in_place = min(_IN_PLACE, room) if engine.group_size == "auto" else size
    ungroupable = prepared.binding.ungroupable
    if local.grouping == "in_place":
        return Sizing(in_place, False, "asked for")
    if local.grouping == "grouped":
        if ungroupable:
            what = f"this model cannot be trained grouped: {ungroupable}"
            raise ModelError(what, where="local.grouping", fix="use `auto`")
        return Sizing(size, True, "asked for")
    if ungroupable:
        return Sizing(in_place, False, ungroupable)
    if not isinstance(local.gradient, Backprop):
        return Sizing(size, True, "directions and clients share passes")
    gain, padding = float(np.interp(rows / wanted, _SHARE, _GAIN)), _padding(lengths, size)
    facts = f"{rows:.0f} rows a client's step; a pass of {size} gains {gain:.1f}x and pads {padding:.1f}x"
    return Sizing(size, True, facts) if size > 1 and gain > padding else Sizing(in_place, False, facts)


def make_groups(prepared: Prepared, cohort: Sequence[int], size: int) -> list[list[int]]:
    """The cohort in groups of clients with a like number of steps, then of like lengths: they end together and pad little."""
    local, train, lengths = prepared.experiment.local, prepared.train, _mean_lengths(prepared)
    steps = {k: steps_of(len(train.rows(k)), local, prepared.step_scale) for k in cohort}
    order = sorted(steps, key=lambda k: (-steps[k], -lengths[k], k))
    return [order[i : i + size] for i in range(0, len(order), size)]


def _mean_lengths(prepared: Prepared) -> NDArray[np.float64]:
    """The mean length of each client's rows."""
    train = prepared.train
    sums = np.add.reduceat(prepared.table.lengths[train.indices], train.offsets[:-1])
    return sums / np.diff(train.offsets)


def _padding(lengths: NDArray[np.float64], size: int) -> float:
    """What groups of clients of like lengths compute, over what they hold."""
    ordered = np.sort(lengths)[::-1]
    longest = ordered[np.arange(len(ordered)) // size * size]
    return float(longest.sum() / ordered.sum())
