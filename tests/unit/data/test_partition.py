from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedloom.config.schema import (
    ColumnPartition,
    DirichletPartition,
    GivenPartition,
    IidPartition,
    QuantityPartition,
)
from fedloom.data.partition import Partition, describe, hold_out, partition_rows, split_validation
from fedloom.errors import DataError

HERE = Path()


@dataclass
class Columns:
    """A table's columns in memory; codes of -1 are missing values."""

    texts: dict[str, tuple[list[int], list[str]]]
    rows: int
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.arange(0))

    @property
    def source_rows(self) -> int:
        return self.rows

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        codes, names = self.texts[name]
        return np.asarray(codes, dtype=np.int32), names

    def column(self, name: str) -> NDArray[np.int64]:
        assert name == "source_row"
        return self.numbers if len(self.numbers) else np.arange(self.rows)


def table(codes: list[int], names: list[str] | None = None) -> Columns:
    return Columns({"y": (codes, names or [f"v{i}" for i in range(max(codes, default=0) + 1)])}, len(codes))


def deal(spec: Any, rows: Any, columns: Columns | None = None, *, seed: int = 0, **more: Any) -> Partition:
    return partition_rows(spec, np.asarray(rows), columns or table([0]), seed=seed, base=HERE, **more)


def check(partition: Partition, rows: Any) -> None:
    """Disjoint and complete, with consistent arrays and distinct names."""
    assert sorted(partition.indices.tolist()) == sorted(np.asarray(rows).tolist())
    assert len(partition.offsets) == len(partition.clients) + 1 == len(partition) + 1
    assert partition.offsets[0] == 0 and partition.offsets[-1] == len(partition.indices)
    assert len(set(partition.clients)) == len(partition.clients)
    assert partition.indices.dtype == partition.offsets.dtype == np.int64
    for k in range(len(partition)):
        own = partition.rows(k)
        assert (np.diff(own) > 0).all()


CODES = st.lists(st.integers(-1, 3), min_size=12, max_size=60)
SPECS = st.one_of(
    st.builds(IidPartition, kind=st.just("iid"), clients=st.integers(1, 8)),
    st.builds(
        QuantityPartition,
        kind=st.just("quantity"),
        clients=st.integers(1, 4),
        exponent=st.floats(0, 4),
        min_rows=st.integers(1, 2),
    ),
    st.builds(
        DirichletPartition,
        kind=st.just("dirichlet"),
        clients=st.integers(1, 4),
        alpha=st.floats(0.5, 50),
        label=st.just("y"),
        min_rows=st.just(1),
    ),
)


@settings(max_examples=150, deadline=None)
@given(SPECS, CODES, st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_every_partition_is_disjoint_complete_and_repeatable(
    spec: Any, codes: list[int], seed: int, mixer: Any
) -> None:
    columns = table(codes)
    rows = [i for i in range(len(codes)) if i % 7 != 3]
    try:
        partition = deal(spec, rows, columns, seed=seed)
    except DataError as error:
        assert spec.kind == "dirichlet" and "draws" in str(error)
        return
    check(partition, rows)
    assert len(partition) == spec.clients and partition.sizes.min() >= getattr(spec, "min_rows", 1)
    mixer.shuffle(rows)
    again = deal(spec, rows, columns, seed=seed)
    assert again.digest == partition.digest and again.indices.tobytes() == partition.indices.tobytes()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.none() | st.integers(1, 12), st.integers(0, 9))
def test_a_column_partition_keeps_owners_together(codes: list[int], clients: int | None, seed: int) -> None:
    columns, rows = table(codes), np.arange(len(codes))
    spec = ColumnPartition(kind="column", column="y", clients=clients)
    present = sorted(set(codes))
    try:
        partition = deal(spec, rows, columns, seed=seed)
    except DataError as error:
        assert "have fewer than 1 rows" in str(error) and clients is not None and clients > len(present)
        return
    check(partition, rows)
    owners = [{codes[row] for row in partition.rows(k)} for k in range(len(partition))]
    if clients is None or clients == len(present):
        assert partition.clients == [f"v{code}" for code in present]
        assert owners == [{code} for code in present]
    elif clients < len(present):
        assert owners == [set(present[k::clients]) for k in range(clients)]
    else:
        assert all(len(own) == 1 for own in owners)
        sizes: dict[int, list[int]] = {}
        for own, size in zip(owners, partition.sizes.tolist(), strict=True):
            sizes.setdefault(own.pop(), []).append(size)
        assert all(max(each) - min(each) <= 1 for each in sizes.values())


def test_a_column_orders_numbers_by_size_and_names_divided_clients() -> None:
    columns = table([2, 2, 0, 0, 1, 1], ["10", "x", "9"])
    assert deal(ColumnPartition(kind="column", column="y"), range(6), columns).clients == ["9", "10", "x"]
    assert deal(ColumnPartition(kind="column", column="y", clients=4), range(6), columns).clients == [
        "9-0",
        "9-1",
        "10-0",
        "x-0",
    ]
    assert deal(ColumnPartition(kind="column", column="y", clients=2), range(6), columns).clients == [
        "client-00000",
        "client-00001",
    ]


def test_iid_sizes_differ_by_one_at_most_and_rows_are_mixed() -> None:
    partition = deal(IidPartition(kind="iid", clients=7), range(100))
    assert set(partition.sizes.tolist()) == {14, 15}
    assert partition.rows(0).tolist() != list(range(partition.rows(0)[0], partition.rows(0)[0] + 15))
    assert partition.digest != deal(IidPartition(kind="iid", clients=7), range(100), seed=1).digest


def test_quantity_follows_the_power_law() -> None:
    spec = QuantityPartition(kind="quantity", clients=4, exponent=1.0, min_rows=1)
    assert deal(spec, range(2500)).sizes.tolist() == [1200, 600, 400, 300]  # 2500 / (1 + 1/2 + 1/3 + 1/4) = 1200
    spec = QuantityPartition(kind="quantity", clients=4, exponent=3.0, min_rows=10)
    sizes = deal(spec, range(100)).sizes.tolist()
    assert sizes == [70, 10, 10, 10]  # 80 * 1/9 is below 10, so the second client is raised too
    assert deal(QuantityPartition(kind="quantity", clients=5, exponent=0), range(50)).sizes.tolist() == [10] * 5


def test_dirichlet_gets_more_uneven_as_alpha_falls() -> None:
    columns = table([i % 5 for i in range(5000)])

    def largest_share(alpha: float) -> float:
        spec = DirichletPartition(kind="dirichlet", clients=10, alpha=alpha, min_rows=10)
        counts = np.array(describe(deal(spec, range(5000), columns, label="y"), *columns.codes("y"))["counts"])
        return float((counts.max(1) / counts.sum(1)).mean())

    assert largest_share(0.1) > largest_share(1.0) + 0.15
    assert largest_share(1000.0) < 0.25


def test_dirichlet_deals_rows_of_missing_and_absent_labels() -> None:
    columns = table([-1, 0, 3] * 40)  # codes 1 and 2 do not occur: prior systems lose rows here
    spec = DirichletPartition(kind="dirichlet", clients=3, alpha=5.0, min_rows=2)
    check(deal(spec, range(120), columns, label="y"), range(120))
    none = table([-1] * 60, ["a"])
    check(deal(spec, range(60), none, label="y"), range(60))


IMPOSSIBLE: list[tuple[Any, list[int], dict[str, Any], str]] = [
    (IidPartition(kind="iid", clients=9), [0] * 8, {}, "8 rows are too few for 9 clients with at least one row"),
    (QuantityPartition(kind="quantity", clients=5, min_rows=2), [0] * 9, {}, "9 rows are too few for 5 clients"),
    (
        DirichletPartition(kind="dirichlet", clients=5, alpha=0.01, label="y", min_rows=10),
        [0, 1] * 30,
        {},
        "none of 100 draws gives every client 10 rows.* alpha 0.01; in the best draw .* Raise alpha",
    ),
    (DirichletPartition(kind="dirichlet", clients=2, alpha=1.0), [0] * 30, {}, "there is no label to divide"),
    (ColumnPartition(kind="column", column="y"), [0, -1, -1], {}, "2 of 3 rows have no value in the column 'y'"),
    (
        ColumnPartition(kind="column", column="y"),
        [0, 0, 1, 2, 3, 4, 5, 6],
        {"min_rows": 2},
        r"6 of 7 clients have fewer than 2 rows: v1 1, v2 1, v3 1, v4 1, v5 1 and 1 more\. Lower data.min_rows",
    ),
]


@pytest.mark.parametrize(("spec", "codes", "more", "said"), IMPOSSIBLE)
def test_what_cannot_be_dealt_says_what_to_change(spec: Any, codes: list[int], more: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        deal(spec, range(len(codes)), table(codes), **more)


def given_file(folder: Path, content: object) -> GivenPartition:
    (folder / "who.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return GivenPartition(kind="given", file="who.json")


def test_given_rows_are_the_sources_own(tmp_path: Path) -> None:
    # Row 1 of the source could not be used, and row 4 is held out: both may be named.
    columns = Columns({}, 6, np.array([0, 2, 3, 4, 5]))
    spec = given_file(tmp_path, {"b": [5, 1, 0], "a": [2, 3, 4]})
    partition = partition_rows(spec, np.array([0, 1, 2, 4]), columns, seed=0, base=tmp_path)
    assert partition.clients == ["b", "a"]
    assert [partition.rows(k).tolist() for k in range(2)] == [[0, 4], [1, 2]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"a": [0, 1], "b": [1, 2, 3]}, "client 'b': row 1 is given more than once"),
        ({"a": [0, 0, 1, 2, 3]}, "client 'a': row 0 is given more than once"),
        ({"a": [0, 1], "b": [3]}, "1 rows belong to no client, the first is row 2"),
        ({"a": [0, 1, 2, 3, 4]}, "client 'a': 4 is not a row. Rows are counted from 0 to 3"),
        ({"a": [0, 1, 2, -3]}, "-3 is not a row"),
        ({"a": [0, 1, 2, "3"]}, "'3' is not a row"),
        ({"a": [0, 1, 2, True]}, "True is not a row"),
        ({"a": [0, 1, 2, 3], "b": []}, "1 of 2 clients have fewer than 1 rows: b 0"),
        ([[0, 1]], "it must be {"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_a_given_file_with_a_mistake(content: object, said: str, tmp_path: Path) -> None:
    spec = given_file(tmp_path, content)
    with pytest.raises(DataError, match=said):
        partition_rows(spec, np.arange(4), Columns({}, 4), seed=0, base=tmp_path)


def test_a_given_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        partition_rows(GivenPartition(kind="given", file="x"), np.arange(4), Columns({}, 4), seed=0, base=tmp_path)


@settings(max_examples=100, deadline=None)
@given(CODES, st.floats(0, 0.9), st.integers(0, 9), st.booleans())
def test_hold_out_is_a_stratified_part(codes: list[int], fraction: float, seed: int, labelled: bool) -> None:
    rows, labels = np.arange(len(codes)) * 3, np.asarray(codes)
    train, held = hold_out(rows, fraction, seed, labels if labelled else None)
    assert sorted([*train, *held]) == rows.tolist() and len(train) >= 1
    assert abs(len(held) - fraction * len(rows)) <= 1
    if labelled:
        for code in set(codes):
            taken = (labels[held // 3] == code).sum()
            assert abs(taken - (labels == code).sum() * len(held) / len(rows)) < 1
    mixed = np.random.default_rng(seed).permutation(len(rows))
    again = hold_out(rows[mixed], fraction, seed, labels[mixed] if labelled else None)
    assert np.array_equal(again[1], held) and np.array_equal(again[0], train)


def test_hold_out_edges() -> None:
    assert len(hold_out(np.arange(10), 0.0, 0)[1]) == 0
    assert len(hold_out(np.arange(10), 0.01, 0)[1]) == 1
    assert len(hold_out(np.arange(1), 0.5, 0)[1]) == 0
    assert hold_out(np.arange(100), 0.1, 0)[1].tolist() != hold_out(np.arange(100), 0.1, 1)[1].tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.floats(0, 0.95), st.integers(0, 2**40), st.data())
def test_validation_of_one_client_does_not_depend_on_the_others(
    sizes: list[int], fraction: float, seed: int, data: st.DataObject
) -> None:
    rows = np.random.default_rng(0).permutation(sum(sizes)).astype(np.int64)
    groups = [np.sort(part) for part in np.split(rows, np.cumsum(sizes)[:-1])]

    def partition_of(order: list[int]) -> Partition:
        own = [groups[k] for k in order]
        return Partition([f"c{k}" for k in order], np.cumsum([0, *map(len, own)]), np.concatenate(own))

    whole = partition_of(list(range(len(sizes))))
    train, validation = split_validation(whole, fraction, seed)
    check(train, train.indices)
    assert train.clients == validation.clients == whole.clients
    for k, size in enumerate(sizes):
        both = [*train.rows(k), *validation.rows(k)]
        assert sorted(both) == groups[k].tolist() and len(train.rows(k)) >= 1
        assert len(validation.rows(k)) == min(int(np.floor(size * fraction + 0.5)), size - 1)
    order = data.draw(st.lists(st.sampled_from(range(len(sizes))), unique=True, min_size=1))
    part = partition_of(order)
    _, some = split_validation(part, fraction, seed)
    for place, k in enumerate(order):
        assert some.rows(place).tolist() == validation.rows(k).tolist()


def test_another_seed_is_another_validation() -> None:
    whole = deal(IidPartition(kind="iid", clients=2), range(100))
    assert split_validation(whole, 0.2, 0)[1].digest != split_validation(whole, 0.2, 1)[1].digest


def test_describe_counts_every_row() -> None:
    partition = Partition(["a", "b"], np.array([0, 3, 5]), np.array([0, 1, 2, 3, 4]))
    facts = describe(partition, np.array([0, 1, 1, 0, -1]), ["x", "y"])
    assert facts == {
        "digest": partition.digest,
        "clients": ["a", "b"],
        "rows": [3, 2],
        "labels": ["x", "y", "(none)"],
        "counts": [[1, 2, 0], [1, 0, 1]],
    }
    json.dumps(facts)
    assert describe(partition)["counts"] == []


def test_the_digest_sees_names_borders_and_rows() -> None:
    base = Partition(["a", "b"], np.array([0, 1, 3]), np.array([0, 1, 2]))
    others = [
        Partition(["a", "c"], base.offsets, base.indices),
        Partition(["a", "b"], np.array([0, 2, 3]), base.indices),
        Partition(["a", "b"], base.offsets, np.array([1, 0, 2])),
    ]
    assert len({p.digest for p in [base, *others]}) == 4


def test_many_clients_cost_no_python_loop() -> None:
    """100,000 clients are dealt in arrays: the time grows with the rows, not with the clients."""
    import time

    def seconds(clients: int) -> float:
        started = time.process_time()
        whole = deal(IidPartition(kind="iid", clients=clients), np.arange(1_000_000))
        split_validation(whole, 0.1, 0)
        return time.process_time() - started

    few = min(seconds(100) for _ in range(2))
    many = min(seconds(100_000) for _ in range(2))
    assert many < 4 * few
