from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom.data import table as tables
from fedloom.data.encode import Dropped, Encoded
from fedloom.data.fields import Row
from fedloom.data.sources import Source
from fedloom.data.table import Table, build_table
from fedloom.errors import DataError


def source(values: Sequence[dict[str, object]], digest: str = "d") -> Source:
    def read() -> list[Row]:
        return [Row(v, f"line {i}", i) for i, v in enumerate(values)]

    return Source("rows", tuple(values[0]) if values else (), read, lambda: digest, {})


def encode(rows: Sequence[Row]) -> list[Encoded | Dropped]:
    """Each character a token; a row of the letter x is dropped, one longer than 5 is cut."""
    found: list[Encoded | Dropped] = []
    for row in rows:
        text = str(row.values["text"])
        if text.startswith("x"):
            found.append(Dropped("it is x"))
            continue
        ids = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)[:5]
        found.append(Encoded({"input_ids": ids, "label_id": len(text), "weight": len(text) / 2}, len(text) > 5))
    return found


def build(values: Sequence[dict[str, object]], cache: Path | None, **more: Any) -> Table:
    digest, encoder = more.pop("digest", "d"), more.pop("encode", encode)
    options = {"map": lambda row: row.values, "key": "k", "keep": ["owner"], **more}
    return build_table(source(values, digest), encoder, cache=cache, **options)


ROWS = [
    {"text": "ab", "owner": "Ann"},
    {"text": "x", "owner": "Bob"},
    {"text": "c", "owner": None},
    {"text": "defghi", "owner": "Bob"},
    {"text": "", "owner": "Ann"},
]


def test_columns_come_back_as_views_of_the_file(tmp_path: Path) -> None:
    table = build(ROWS, tmp_path)
    values, offsets = table.ragged("input_ids")
    assert offsets.tolist() == [0, 2, 3, 8, 8] and values.dtype == np.int32
    assert bytes(values.astype(np.uint8)) == b"abcdefgh"
    assert not values.flags.owndata and not values.flags.writeable and not offsets.flags.owndata
    assert table.column("label_id").tolist() == [2, 1, 6, 0] and table.column("weight").tolist() == [1, 0.5, 3, 0]
    codes, names = table.codes("owner")
    assert codes.tolist() == [0, -1, 1, 0] and names == ["Ann", "Bob"]
    assert table.column("source_row").tolist() == [0, 2, 3, 4]
    assert len(table) == 4 and table.lengths.tolist() == [2, 1, 5, 0]
    assert table.dropped == {"it is x": 1} and table.truncated == 1 and table.source_rows == 5
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [table.path.name]
    assert not list(tmp_path.glob(".*.parts"))


def test_it_is_made_once_and_again_when_anything_changes(tmp_path: Path) -> None:
    first = build(ROWS, tmp_path)
    again = build(ROWS, tmp_path, encode=None)  # would fail if it were called
    assert not first.reused and again.reused and again.digest == first.digest and again.dropped == first.dropped
    for change in ({"key": "other"}, {"digest": "e"}, {"keep": []}):
        assert not build(ROWS, tmp_path, **change).reused
    assert build(ROWS[:4], tmp_path, digest="f").digest != first.digest


def test_the_same_content_has_the_same_digest(tmp_path: Path) -> None:
    assert build(ROWS, tmp_path / "a").digest == build(ROWS, tmp_path / "b", key="other").digest
    assert build(ROWS, tmp_path / "a").path.read_bytes() == build(ROWS, tmp_path / "c").path.read_bytes()


def test_the_digest_sees_where_a_row_ends(tmp_path: Path) -> None:
    def only_ids(rows: Sequence[Row]) -> list[Encoded | Dropped]:
        return [Encoded({"input_ids": np.frombuffer(str(row.values["text"]).encode(), np.uint8)}) for row in rows]

    def digest(*texts: str) -> str:
        rows = [{"text": text} for text in texts]
        return build(rows, tmp_path / "-".join(texts), encode=only_ids, keep=[]).digest

    assert len({digest("ab", "c"), digest("a", "bc"), digest("ac", "b")}) == 3


def test_without_a_cache_it_lives_as_long_as_the_table() -> None:
    table = build(ROWS, None)
    path = table.path
    values, _ = table.ragged("input_ids")
    assert path.is_file() and not table.reused
    del table
    assert not path.exists()
    assert values.tolist()[:2] == [97, 98]  # the map outlives the name


def test_kept_columns_may_be_called_anything(tmp_path: Path) -> None:
    rows = [{"text": "ab", "input_ids": "A", "source_row": "B", "a/b": 7}]
    table = build(rows, tmp_path, keep=["input_ids", "source_row", "a/b"])
    assert [table.codes(name)[1] for name in ("input_ids", "source_row", "a/b")] == [["A"], ["B"], ["7"]]
    assert table.ragged("input_ids")[0].tolist() == [97, 98] and table.column("source_row").tolist() == [0]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (lambda table: table.column("label"), "no numeric column 'label'. Did you mean 'label_id'"),
        (lambda table: table.ragged("label_id"), "no ragged column 'label_id'"),
        (lambda table: table.codes("ownr"), "no kept column 'ownr'. Did you mean 'owner'"),
    ],
)
def test_a_column_that_is_not_there_is_named(use: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        use(build(ROWS, tmp_path))


def uneven(rows: Sequence[Row]) -> list[Encoded | Dropped]:
    one = {"input_ids": np.zeros(1, np.int32)}
    return [Encoded(one | ({"extra": 1} if i else {})) for i, _ in enumerate(rows)]


def changing(rows: Sequence[Row]) -> list[Encoded | Dropped]:
    return [Encoded({"input_ids": np.zeros(1, np.int32 if i else np.int64)}) for i, _ in enumerate(rows)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encode": lambda rows: [Dropped("too long")] * len(rows)}, r"no row can be used. Too long \(5\)"),
        ({"encode": uneven}, "different columns for different rows"),
        ({"encode": changing}, "'input_ids' changes its type"),
        ({"encode": lambda rows: [Encoded({"y": {}})] * len(rows)}, "column 'y' holds a dict"),
        ({"keep": ["ownr"]}, "there is no column 'ownr'. Did you mean 'owner'"),
    ],
)
def test_what_cannot_be_a_table(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        build(ROWS, tmp_path, **options)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = build(ROWS, tmp_path).path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="this table is damaged"):
        len(build(ROWS, tmp_path))


def test_leftovers_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    name = build(ROWS, tmp_path).path
    name.unlink()
    (tmp_path / f".{name.name}.abc.parts").mkdir()
    assert not build(ROWS, tmp_path).reused
    assert not list(tmp_path.glob(".*.parts"))


def test_two_at_once_write_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(*arguments: Any) -> None:
        calls.append(1)
        time.sleep(0.2)
        write(*arguments)

    write = tables._write
    monkeypatch.setattr(tables, "_write", slow)
    found: list[Table] = []
    threads = [threading.Thread(target=lambda: found.append(build(ROWS, tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and len(calls) == 1 and sorted(table.reused for table in found) == [False, True]


MEMORY = """
import sys, resource, numpy as np
from pathlib import Path
from fedloom.data.fields import Row
from fedloom.data.encode import Encoded
from fedloom.data.sources import Source
from fedloom.data.table import build_table
n, ids = int(sys.argv[1]), np.zeros(2000, np.int32)
def read():
    for i in range(n):
        yield Row({"o": str(i % 7)}, "", i)
encode = lambda rows: [Encoded({"input_ids": ids})] * len(rows)
source = Source("rows", ("o",), read, lambda: "d", {})
build_table(source, encode, map=lambda row: row.values, key="k", keep=["o"], cache=Path(sys.argv[2]))
with open("/proc/self/status") as status:
    # VmHWM would count the mapped file; anonymous memory is what must not grow.
    print([int(l.split()[1]) for l in status if l.startswith("RssAnon")][0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def kilobytes(rows: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(rows), str(tmp_path / str(rows))]
        return int(subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout)

    assert kilobytes(10_000) - kilobytes(500) < 20_000  # the rows themselves are 80 MB
