"""From the user's columns to a task's fields: text, or nothing, but never the word "None"."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedloom.errors import DataError, nearest

__all__ = ["Row", "as_text", "check_fields", "map_fields"]


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, where it stands ("answers.jsonl, line 17"), and its number in the source, from
    0.
    """

    values: Mapping[str, object]
    where: str
    index: int = 0


def check_fields(
    columns: Sequence[str], fields: Mapping[str, str], required: Sequence[str], optional: Sequence[str], *, where: str
) -> None:
    """Refuse, before any row is read, a mapping that names a field the task has not or a column the source has not."""
    known = [*required, *optional]
    for ours, theirs in fields.items():
        if ours not in known:
            raise DataError(f"the task has no field {ours!r}", where="data.fields", fix=nearest(ours, known))
        if theirs not in columns:
            raise DataError(
                f"there is no column {theirs!r} for the field {ours!r}", where=where, fix=nearest(theirs, columns)
            )
    for ours in required:
        if fields.get(ours, ours) not in columns:
            raise _no_column(ours, where, columns)


def map_fields(
    row: Row, fields: Mapping[str, str], required: Sequence[str], optional: Sequence[str], lists: Sequence[str] = ()
) -> dict[str, Any]:
    """The row's values under the task's names; a field that is not mapped is read from the column of its own name.

    A missing, null or empty optional value is "". The fields in `lists` may also hold a list or a mapping, and be empty. Raises
    DataError for an empty required value, and for a value that is no text.
    """
    mapped: dict[str, Any] = {}
    for ours in (*required, *optional):
        theirs = fields.get(ours, ours)
        value = row.values.get(theirs)
        nested = ours in lists and isinstance(value, list | tuple | Mapping)
        mapped[ours] = value if nested else as_text(value, theirs, row.where)
    for ours in required:
        theirs = fields.get(ours, ours)
        if (ours not in lists and not mapped[ours].strip()) or theirs not in row.values:
            if theirs not in row.values:
                raise _no_column(ours, row.where, list(row.values), theirs)
            raise DataError(f"the column {theirs!r} is empty", where=row.where, why=f"the field {ours!r} is required")
    return mapped


def as_text(value: object, column: str, where: str) -> str:
    """A cell as text: null and NaN are "", numbers are written out; raises DataError for lists, mappings and bytes."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | tuple | dict | set | bytes):
        raise DataError(f"the column {column!r} holds a {type(value).__name__}, not text", where=where)
    return str(value)


def _no_column(ours: str, where: str, columns: Sequence[str], theirs: str | None = None) -> DataError:
    missing = theirs or ours
    why = f"the field {ours!r} is required"
    fix = nearest(missing, columns)
    if missing == ours:
        fix += f". Or name your column: data.fields: {{{ours}: YOUR_COLUMN}}"
    return DataError(f"there is no column {missing!r}", where=where, why=why, fix=fix)
