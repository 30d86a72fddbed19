"""Who holds which rows: always disjoint and complete, and for the same seed the same bytes.

Everything is arrays over rows, so that 100,000 clients over millions of rows are dealt in seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedloom.config import schema
from fedloom.data.fednlp import read_partition
from fedloom.data.table import ROW
from fedloom.errors import DataError
from fedloom.vector.streams import stream, stream_seed

__all__ = [
    "Columns",
    "Partition",
    "Rows",
    "deal",
    "describe",
    "hold_out",
    "natural",
    "partition_rows",
    "split_validation",
]

Rows = NDArray[np.int64]

# Draws of a Dirichlet partition before it is given up.
_TRIES = 100


class Columns(Protocol):
    """What a partition asks of a table."""

    @property
    def source_rows(self) -> int: ...

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]: ...

    def column(self, name: str) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Partition:
    """N clients and their rows: client k, called clients[k], holds indices[offsets[k] : offsets[k + 1]]."""

    clients: Sequence[str]
    offsets: Rows
    indices: Rows

    def __len__(self) -> int:
        return len(self.clients)

    def rows(self, client: int) -> Rows:
        """Row numbers of the client with this number."""
        return self.indices[self.offsets[client] : self.offsets[client + 1]]

    @property
    def sizes(self) -> Rows:
        """Rows of each client `[N]`."""
        return np.diff(self.offsets)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of clients, offsets and rows."""
        summary = hashlib.sha256(json.dumps(list(self.clients)).encode())
        for part in (self.offsets, self.indices):
            summary.update(np.ascontiguousarray(part, dtype="<i8").data)
        return summary.hexdigest()


def deal(
    data: schema.Data,
    rows: Rows,
    table: Columns,
    *,
    seed: int,
    base: Path,
    label: str | None = None,
    strata: NDArray[np.integer[Any]] | None = None,
) -> tuple[Rows, Partition, Partition]:
    """The held-out rows, and of each client the rows it trains on and those of its own evaluation.

    strata: the code of each of `rows` by which the held-out ones are stratified. Raises DataError as `partition_rows` does.
    """
    if isinstance(data.partition, schema.GivenPartition) and data.partition.method is not None:
        train, validation = _given_with_tests(data.partition, data.partition.method, rows, table, base)
        _check_sizes(train, data.min_rows, data.partition)
        return np.sort(validation.indices), train, validation
    rest, held_out = hold_out(rows, data.held_out, seed, labels=strata)
    whole = partition_rows(data.partition, rest, table, seed=seed, base=base, label=label, min_rows=data.min_rows)
    alone = isinstance(data.partition, schema.ColumnPartition) and data.partition.clients is None and not len(held_out)
    return held_out, *split_validation(whole, data.validation, seed, by_place=alone)


def partition_rows(
    spec: schema.Partition,
    rows: Rows,
    table: Columns,
    *,
    seed: int,
    base: Path,
    label: str | None = None,
    min_rows: int = 1,
) -> Partition:
    """Deal the rows to clients as the experiment file says; the order of `rows` plays no part.

    label: the column of the task's labels, for a Dirichlet partition that names none. Raises DataError when it cannot
    be done, or leaves a client with fewer than `min_rows` rows.
    """
    rows = np.sort(np.asarray(rows, dtype=np.int64))
    match spec:
        case schema.IidPartition():
            names, owner = _iid(spec, rows, seed)
        case schema.QuantityPartition():
            names, owner = _quantity(spec, rows, seed)
        case schema.DirichletPartition():
            names, owner = _dirichlet(spec, rows, table, seed, label)
        case schema.ColumnPartition():
            names, owner = _column(spec, rows, table, seed)
        case schema.GivenPartition():
            names, owner = _given(spec, rows, table, base)
    partition = _gather(names, owner, rows)
    _check_sizes(partition, min_rows, spec)
    return partition


def _iid(spec: schema.IidPartition, rows: Rows, seed: int) -> tuple[list[str], Rows]:
    _enough(len(rows), spec.clients, 1)
    owner = np.arange(len(rows), dtype=np.int64) % spec.clients
    return _numbered(spec.clients), stream(seed, "partition", "iid").permutation(owner)


def _quantity(spec: schema.QuantityPartition, rows: Rows, seed: int) -> tuple[list[str], Rows]:
    """Sizes proportional to k ** -exponent, k = 1..N, none below min_rows, dealt at random."""
    _enough(len(rows), spec.clients, spec.min_rows)
    share = np.arange(1, spec.clients + 1, dtype=np.float64) ** -spec.exponent
    low = np.zeros(spec.clients, dtype=bool)
    while True:  # raising some to the least takes from the rest, which can push more below it
        left = len(rows) - spec.min_rows * low.sum()
        exact = np.where(low, spec.min_rows, share / max(share[~low].sum(), 1e-300) * left)
        below = ~low & (exact < spec.min_rows)
        if not below.any():
            break
        low |= below
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: len(rows) - sizes.sum()]] += 1
    owner = np.repeat(np.arange(spec.clients, dtype=np.int64), sizes)
    return _numbered(spec.clients), stream(seed, "partition", "quantity").permutation(owner)


def _dirichlet(
    spec: schema.DirichletPartition, rows: Rows, table: Columns, seed: int, label: str | None
) -> tuple[list[str], Rows]:
    """For each label, p ~ Dirichlet(alpha * 1_N) and the label's rows cut at floor(cumsum(p) * n); a missing label is
    one.
    """
    column = spec.label or label
    if column is None:
        raise DataError("there is no label to divide", where="data.partition", fix="Name one: label: YOUR_COLUMN")
    n = spec.clients
    _enough(len(rows), n, spec.min_rows)
    codes, counts = np.unique(table.codes(column)[0][rows], return_inverse=True, return_counts=True)[1:]
    best = 0
    for attempt in range(_TRIES):
        random = stream(seed, "partition", "dirichlet", attempt)
        shares = random.dirichlet(np.full(n, spec.alpha), size=len(counts))
        cuts = np.floor(np.cumsum(shares, axis=1) * counts[:, None]).astype(np.int64)
        cuts[:, -1] = counts
        sizes = np.diff(np.minimum(cuts, counts[:, None]), axis=1, prepend=0)
        best = max(best, int(sizes.sum(axis=0).min()))
        if sizes.sum(axis=0).min() >= spec.min_rows:
            owner = np.empty(len(rows), dtype=np.int64)
            # Clients in order within each label, each as often as its size, then shuffled within the label.
            dealt = np.repeat(np.tile(np.arange(n), len(counts)), sizes.ravel())
            shuffled = np.lexsort((random.random(len(rows)), codes))
            owner[shuffled] = dealt
            return _numbered(n), owner
    raise DataError(
        f"none of {_TRIES} draws gives every client {spec.min_rows} rows",
        where="data.partition",
        why=f"{len(rows)} rows, {n} clients, alpha {spec.alpha:g}; in the best draw the smallest client has {best}",
        fix="Raise alpha, or lower clients or min_rows",
    )


def _column(spec: schema.ColumnPartition, rows: Rows, table: Columns, seed: int) -> tuple[list[str], Rows]:
    codes, values = table.codes(spec.column)
    own = codes[rows]
    if (missing := int((own < 0).sum())) > 0:
        raise DataError(
            f"{missing} of {len(rows)} rows have no value in the column {spec.column!r}, so they have no owner",
            where="data.partition",
            fix="Leave them out with data.where, or fill the column",
        )
    present, place = np.unique(own, return_inverse=True)
    order = sorted(range(len(present)), key=lambda i: natural(values[present[i]]))
    rank = np.empty(len(present), dtype=np.int64)
    rank[order] = np.arange(len(present))
    names, owner = [values[present[i]] for i in order], rank[place]
    n = spec.clients or len(names)
    if n < len(names):
        return _numbered(n), owner % n
    if n > len(names):
        return _divided(names, owner, n, seed)
    return names, owner


def _divided(values: list[str], owner: Rows, n: int, seed: int) -> tuple[list[str], Rows]:
    """More clients than values: client k shares value k mod V, whose rows are dealt at random in equal numbers."""
    count = len(values)
    parts = np.array([len(range(v, n, count)) for v in range(count)])
    starts = np.concatenate([[0], np.cumsum(parts)])
    names = [f"{value}-{j}" for value, own in zip(values, parts, strict=True) for j in range(own)]
    order = np.lexsort((stream(seed, "partition", "column").random(len(owner)), owner))
    sizes = np.bincount(owner, minlength=count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    divided = np.empty_like(owner)
    value = owner[order]
    divided[order] = starts[value] + within % parts[value]
    return names, divided


def _given(spec: schema.GivenPartition, rows: Rows, table: Columns, base: Path) -> tuple[list[str], Rows]:
    """Row numbers are the source's, from 0. Rows that are held out or could not be used may be named; they are
    skipped.
    """
    path = base / Path(spec.file).expanduser()
    where, total = path.name, table.source_rows
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", where="data.partition.file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"it cannot be read as JSON: {error}", where=where) from error
    if not isinstance(given, dict) or not all(isinstance(own, list) for own in given.values()):
        raise DataError('it must be {"client id": [row, ...], ...}', where=where)
    holder = np.full(total, -1, dtype=np.int64)
    for k, (name, own) in enumerate(given.items()):
        _claim(holder, _row_numbers(own, total, f"{where}, client {name!r}"), k, f"{where}, client {name!r}")
    return list(given), _owners(holder, rows, table, where)


def _given_with_tests(
    spec: schema.GivenPartition, method: str, rows: Rows, table: Columns, base: Path
) -> tuple[Partition, Partition]:
    """A partition of a FedNLP file: who trains on which rows, and is tested on which. Rows that could not be used may be
    named; they are skipped.
    """
    path = base / Path(spec.file).expanduser()
    clients, total = read_partition(path, method), table.source_rows
    holder = np.full(total, -1, dtype=np.int64)
    for k, (name, own) in enumerate(clients.items()):
        for part, split in enumerate(("train", "test")):
            where = f"{path.name}, client {name!r}, {split}"
            if len(wrong := own[split][(own[split] < 0) | (own[split] >= total)]):
                fix = f"Rows are counted from 0 to {total - 1}: is it the partition of another data file?"
                raise DataError(f"{wrong[0]} is not a row", where=where, fix=fix)
            _claim(holder, own[split], 2 * k + part, where)
    owner = _owners(holder, rows, table, path.name)
    train, test = (_gather(list(clients), owner[own] // 2, rows[own]) for own in (owner % 2 == 0, owner % 2 == 1))
    if not len(test.indices):
        fix = "Write a JSON partition, from which rows are held out: partition: {kind: given, file: clients.json}"
        raise DataError(f"the method {method!r} has no test rows to judge a model on", where=path.name, fix=fix)
    return train, test


def _claim(holder: Rows, numbers: Rows, owner: int, where: str) -> None:
    """Note an owner of rows that have none yet."""
    unique, times = np.unique(numbers, return_counts=True)
    if len(twice := unique[(times > 1) | (holder[unique] >= 0)]):
        raise DataError(f"row {twice[0]} is given more than once", where=where)
    holder[numbers] = owner


def _owners(holder: Rows, rows: Rows, table: Columns, where: str) -> Rows:
    owner: Rows = holder[table.column(ROW)[rows]]
    if (left := int((owner < 0).sum())) > 0:
        row = int(table.column(ROW)[rows[owner < 0][0]])
        fix = "Give every row to a client, or leave rows out with data.where"
        raise DataError(f"{left} rows belong to no client, the first is row {row}", where=where, fix=fix)
    return owner


def _row_numbers(own: list[object], total: int, where: str) -> Rows:
    if wrong := [row for row in own if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < total]:
        raise DataError(f"{wrong[0]!r} is not a row", where=where, fix=f"Rows are counted from 0 to {total - 1}")
    return np.asarray(own, dtype=np.int64)


def hold_out(
    indices: Rows, fraction: float, seed: int, labels: NDArray[np.integer[Any]] | None = None
) -> tuple[Rows, Rows]:
    """Take a share of the rows away, stratified by label when given; answers (train, held), both sorted.

    labels: the code of each of `indices`. A fraction above 0 holds out one row at least and leaves one at least.
    """
    indices = np.asarray(indices, dtype=np.int64)
    order = np.argsort(indices, kind="stable")
    indices = indices[order]
    codes = np.zeros(len(indices), dtype=np.int64) if labels is None else np.asarray(labels)[order]
    wanted = min(max(round(fraction * len(indices)), 1), len(indices) - 1) if fraction > 0 else 0
    _, place, counts = np.unique(codes, return_inverse=True, return_counts=True)
    quota = np.floor(counts * (wanted / max(len(indices), 1))).astype(np.int64)
    rest = counts * (wanted / max(len(indices), 1)) - quota
    quota[np.argsort(-rest, kind="stable")[: wanted - quota.sum()]] += 1
    rank = _rank_within(place, stream(seed, "hold-out").random(len(indices)), counts)
    held = rank < quota[place]
    return indices[~held], indices[held]


def split_validation(
    partition: Partition, fraction: float, seed: int, *, by_place: bool = False
) -> tuple[Partition, Partition]:
    """Keep a share of each client's rows for its own evaluation; answers (train, validation), with the same clients.

    Which rows is decided by a hash of (seed, row) alone, so one client's split does not depend on the others; `by_place`, by one
    of (seed, place among the client's own rows), as the client itself would split them. At least
    one row of each client stays for training; a client whose share is less than half a row keeps none.
    """
    sizes = partition.sizes
    kept = np.minimum(np.floor(sizes * fraction + 0.5).astype(np.int64), np.maximum(sizes - 1, 0))
    client = np.repeat(np.arange(len(partition), dtype=np.int64), sizes)
    keyed = np.arange(len(client), dtype=np.int64) - partition.offsets[client] if by_place else partition.indices
    rank = _rank_within(client, _hash(keyed, stream_seed(seed, "validation")), sizes)
    chosen = rank < kept[client]
    return _take(partition, ~chosen, sizes - kept), _take(partition, chosen, kept)


def _take(partition: Partition, chosen: NDArray[np.bool_], sizes: Rows) -> Partition:
    return Partition(partition.clients, _offsets(sizes), partition.indices[chosen])


def describe(
    partition: Partition, codes: NDArray[np.integer[Any]] | None = None, names: Sequence[str] = ()
) -> dict[str, Any]:
    """What `partition.json` holds: digest, client ids, rows of each, label names, and counts `[clients][labels]`.

    codes: the label code of every row of the table, -1 for none, which is counted as a label called "(none)".
    """
    labels = list(names)
    facts: dict[str, Any] = {
        "digest": partition.digest,
        "clients": list(partition.clients),
        "rows": partition.sizes.tolist(),
        "labels": labels,
        "counts": [],
    }
    if codes is None:
        return facts
    own = np.asarray(codes, dtype=np.int64)[partition.indices]
    if (own < 0).any():
        labels.append("(none)")
        own = np.where(own < 0, len(labels) - 1, own)
    client = np.repeat(np.arange(len(partition), dtype=np.int64), partition.sizes)
    flat = np.bincount(client * len(labels) + own, minlength=len(partition) * len(labels))
    facts["counts"] = flat.reshape(len(partition), len(labels)).tolist()
    return facts


def _gather(names: list[str], owner: Rows, rows: Rows) -> Partition:
    """Clients' rows side by side, each client's in ascending order."""
    order = np.argsort(owner, kind="stable")
    return Partition(names, _offsets(np.bincount(owner, minlength=len(names))), rows[order])


def _offsets(sizes: Rows) -> Rows:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def _rank_within(part: NDArray[Any], key: NDArray[Any], sizes: NDArray[Any]) -> Rows:
    """The place of each element among those of its part, by key; parts are numbered 0.., of the given sizes."""
    order = np.lexsort((key, part))
    rank = np.empty(len(part), dtype=np.int64)
    rank[order] = np.arange(len(part)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _hash(values: Rows, key: int) -> NDArray[np.uint64]:
    """splitmix64 (Steele et al. 2014) of value + key: a bijection, so there are no ties."""
    x = (values.astype(np.uint64) + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _numbered(count: int) -> list[str]:
    width = max(5, len(str(count - 1)))
    return [f"client-{k:0{width}}" for k in range(count)]


def natural(text: str) -> tuple[bool, int, str]:
    """What clients are sorted by: numbers by size, before words by letter."""
    number = re.fullmatch(r"-?\d{1,18}", text)
    return (number is None, int(text) if number else 0, text)


def _enough(rows: int, clients: int, least: int) -> None:
    if rows < clients * least:
        each = "one row" if least == 1 else f"{least} rows"
        raise DataError(
            f"{rows} rows are too few for {clients} clients with at least {each} each",
            where="data.partition",
            fix="Lower clients or min_rows, or give more rows",
        )


def _check_sizes(partition: Partition, least: int, spec: schema.Partition) -> None:
    poor = np.flatnonzero(partition.sizes < max(least, 1))
    if not len(poor):
        return
    shown = ", ".join(f"{partition.clients[k]} {partition.sizes[k]}" for k in poor[:5])
    more = f" and {len(poor) - 5} more" if len(poor) > 5 else ""
    deal = {"column": "deal the values to fewer clients (clients: N)", "given": "merge clients in the file"}
    raise DataError(
        f"{len(poor)} of {len(partition)} clients have fewer than {max(least, 1)} rows: {shown}{more}",
        where="data.partition",
        fix=f"Lower data.min_rows, or {deal.get(spec.kind, 'use fewer clients')}",
    )
