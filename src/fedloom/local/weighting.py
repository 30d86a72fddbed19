"""What a client's update weighs: p_k in sum_k p_k x_k / sum_k p_k."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedloom.config.reference import line_of, load_attribute
from fedloom.config.schema import AdaptedWeighting, EpisodesWeighting, FunctionWeighting
from fedloom.errors import DataError, UsageError
from fedloom.local.batches import steps_of

if TYPE_CHECKING:
    from fedloom.local.prepare import Prepared
    from fedloom.tasks.base import Rows

__all__ = ["check_weights", "client_weight"]

_KEY = "federation.weighting"


def client_weight(prepared: Prepared, client: int) -> float:
    """The weight that `federation.weighting` gives a client; always finite and above 0.

    Raises DataError for a client without an episode, UsageError for a function of the user's that fails or gives no such number.
    """
    weighting, rows = prepared.experiment.federation.weighting, prepared.train.rows(client)
    match weighting.kind:
        case "uniform":
            return 1.0
        case "samples":
            return float(len(rows))
        case "tokens":
            return float(prepared.table.lengths[rows].sum())
        case "steps":
            return float(steps_of(len(rows), prepared.experiment.local, prepared.step_scale))
    if isinstance(weighting, AdaptedWeighting):
        return len(rows) + weighting.mu * _episodes(prepared, rows, weighting.column)
    if isinstance(weighting, EpisodesWeighting):
        return _some_episodes(prepared, client, rows, weighting.column)
    assert isinstance(weighting, FunctionWeighting)
    return _own(prepared, client, rows, weighting.function)


def check_weights(prepared: Prepared) -> None:
    """Raise now what `client_weight` would raise in the midst of a run."""
    if isinstance(prepared.experiment.federation.weighting, EpisodesWeighting | FunctionWeighting):
        for client in prepared.seen:
            client_weight(prepared, int(client))


def _episodes(prepared: Prepared, rows: Rows, column: str) -> int:
    """The different values of a column among these rows; rows without one belong to no episode."""
    codes = np.unique(prepared.table.codes(column)[0][rows])
    return int((codes >= 0).sum())


def _some_episodes(prepared: Prepared, client: int, rows: Rows, column: str) -> float:
    count = _episodes(prepared, rows, column)
    if count == 0:
        raise DataError(
            f"client {prepared.train.clients[client]!r} would weigh nothing",
            where=_KEY,
            why=f"none of its {len(rows)} rows has a value in the column {column!r}",
            fix="Fill the column, leave such rows out with data.where, or weigh by kind: adapted",
        )
    return float(count)


def _own(prepared: Prepared, client: int, rows: Rows, reference: str) -> float:
    """What the user's own function says."""
    name, tokens = prepared.train.clients[client], int(prepared.table.lengths[rows].sum())
    try:
        weight = _function(reference, prepared.experiment.base)(name, len(rows), tokens)
    except UsageError:
        raise
    except Exception as error:
        place = line_of(error, reference.partition(":")[0])
        what = f"{reference} fails for client {name!r}: {type(error).__name__}: {error}{place}"
        raise UsageError(what, where=_KEY) from error
    if not isinstance(weight, Real) or isinstance(weight, bool) or not math.isfinite(weight) or weight <= 0:
        what = f"{reference} gives client {name!r} the weight {weight!r}"
        raise UsageError(what, where=_KEY, fix="Give a finite number above 0")
    return float(weight)


@cache
def _function(reference: str, base: Path) -> Callable[[str, int, int], object]:
    found = load_attribute(reference, base)
    if not callable(found):
        fix = "Write a function f(client: str, rows: int, tokens: int) -> float"
        raise UsageError(f"{reference} is no function", where=_KEY, fix=fix)
    return found
