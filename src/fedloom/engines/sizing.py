"""How many clients make a group, and whether they are trained in one batched pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.errors import ModelError
from fedloom.local.batches import steps_of
from fedloom.local.prepare import Prepared

__all__ = ["Sizing", "make_groups", "size_groups"]

_ROWS = {"cpu": 512, "cuda": 8192}  # rows of a matrix product beyond which more clients at once gain nothing
_MOST = 64
_IN_PLACE = 16  # clients a group when they train one after the other: bounds the bank's memory


@dataclass(frozen=True)
class Sizing:
    """The group size, and whether groups are trained batched; why not, where `auto` decided so."""

    group_size: int
    grouped: bool
    reason: str

    @property
    def how(self) -> str:
        """ "grouped" or "in_place"."""
        return "grouped" if self.grouped else "in_place"


def size_groups(prepared: Prepared) -> Sizing:
    """Fill the matrix products: G = rows wanted / (batch size x typical length), where typical is the 75th percentile.

    Raises ModelError when grouping is forced on a model that cannot be grouped.
    """
    local, engine = prepared.experiment.local, prepared.experiment.engine
    typical = int(np.percentile(prepared.table.lengths[prepared.train.indices], 75))
    wanted = _ROWS[prepared.binding.device.type] // max(local.batch_size * typical, 1)
    cohort = min(prepared.experiment.federation.clients_per_round or len(prepared.train), len(prepared.train))
    auto = max(1, min(wanted, _MOST, cohort))
    size = auto if engine.group_size == "auto" else min(engine.group_size, cohort)
    if local.grouping == "in_place":
        return Sizing(_IN_PLACE if engine.group_size == "auto" else size, False, "asked for")
    ungroupable = prepared.binding.ungroupable
    if local.grouping == "grouped":
        if ungroupable:
            raise ModelError(
                f"this model cannot be trained grouped: {ungroupable}", where="local.grouping", fix="use `auto`"
            )
        return Sizing(size, True, "asked for")
    if ungroupable:
        return Sizing(_IN_PLACE if engine.group_size == "auto" else size, False, ungroupable)
    if auto < 2:
        rows = local.batch_size * typical
        return Sizing(
            _IN_PLACE if engine.group_size == "auto" else size,
            False,
            f"one client's {rows} rows a step fill the products",
        )
    return Sizing(size, size > 1, f"{size} clients x {local.batch_size} x {typical} tokens a step")


def make_groups(prepared: Prepared, cohort: Sequence[int], size: int) -> list[list[int]]:
    """The cohort in groups, clients with most steps first, so that a group's members end at about the same step."""
    local, train = prepared.experiment.local, prepared.train
    steps = {int(k): steps_of(len(train.rows(int(k))), local, prepared.step_scale) for k in cohort}
    order = sorted(steps, key=lambda k: (-steps[k], k))
    return [order[i : i + size] for i in range(0, len(order), size)]
