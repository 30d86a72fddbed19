from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedloom.config.schema import Data, IidPartition
from fedloom.data.sources import Source, distinct, open_source
from fedloom.errors import DataError

ROWS = [{"q": "one", "a": "1"}, {"q": "två", "a": "2"}, {"q": 'three, "3"\nlines', "a": "3"}]


def opened(source: str, base: Path, **more: Any) -> Source:
    return open_source(Data(source=source, partition=IidPartition(kind="iid", clients=1), **more), base)


def write(folder: Path, name: str) -> None:
    path = folder / name
    match path.suffix:
        case ".json":
            path.write_text(json.dumps({"version": 1, "rows": ROWS}))
        case ".jsonl":
            path.write_text("\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), "utf-8")
        case ".csv":
            path.write_text('\ufeffq,a\none,1\ntvå,2\n"three, ""3""\nlines",3\n', "utf-8")
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)
        case ".py":
            path.write_text(f"def build():\n    for row in {ROWS!r}:\n        yield row\nITEMS = {ROWS!r}\n")
        case _:
            datasets.Dataset.from_list(ROWS).save_to_disk(str(path))


@pytest.mark.parametrize(
    ("name", "source", "last"),
    [
        ("rows.json", "rows.json", "rows.json, item 3"),
        ("rows.jsonl", "rows.jsonl", "rows.jsonl, line 5"),
        ("rows.csv", "rows.csv", "rows.csv, line 4"),
        ("rows.parquet", "rows.parquet", "rows.parquet, row 3"),
        ("saved", "saved", "saved, row 3"),
        ("my_rows_a.py", "my_rows_a:build", "my_rows_a:build, row 3"),
        ("my_rows_b.py", "my_rows_b:ITEMS", "my_rows_b:ITEMS, row 3"),
    ],
)
def test_every_kind_gives_the_same_rows(name: str, source: str, last: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    found = opened(source, tmp_path)
    assert found.columns == ("q", "a")
    for _ in range(2):  # a source can be read again
        rows = list(found)
        assert [dict(row.values) for row in rows] == ROWS
        assert rows[-1].where == last and [row.index for row in rows] == [0, 1, 2]
    assert found.digest == opened(source, tmp_path).digest
    assert found.digest != opened(source, tmp_path, limit=2).digest
    assert found.digest != opened(source, tmp_path, where={"a": 2}).digest
    assert [row.values["q"] for row in opened(source, tmp_path, where={"a": [2, "3"]})] == ["två", ROWS[2]["q"]]
    kept = list(opened(source, tmp_path, where={"a": [2, 3]}, limit=1))
    assert [(row.values["a"], row.index) for row in kept] == [("2", 1)]
    assert distinct(found, "a") == ["1", "2", "3"]


def test_a_changed_file_has_another_digest(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl")
    before = opened("rows.jsonl", tmp_path).digest
    (tmp_path / "rows.jsonl").write_text('{"q": "x", "a": "1"}')
    assert opened("rows.jsonl", tmp_path).digest != before


WRONG = [
    ("a.jsonl", b'{"q": 1}\n\n{"q": \n', "a.jsonl, line 3: this line is not a JSON object"),
    ("a.jsonl", b'{"q": 1}\n[1]\n', "a.jsonl, line 2: a row must be an object, this is a list"),
    ("a.jsonl", b'{"q": 1}\n{"q": "\xe9"}\n', "a.jsonl, line 2: this is not UTF-8. Byte 0xe9"),
    ("a.jsonl", b"", "a.jsonl: it holds no rows"),
    ("a.json", b'[{"q": 1},\n {"q" 2}]', "a.json, line 2: this is not JSON"),
    ("a.json", b'{"q": 1}\n{"q": 2}\n', "name the file .jsonl"),
    ("a.json", b'{"x": [{"q": 1}], "y": [{"q": 2}]}', "a.json: it must be a list of objects"),
    ("a.json", b'[{"q": 1}, 2]', "a.json, item 2: a row must be an object, this is a int"),
    ("a.csv", b"q,a\n1,2\n1\n", "a.csv, line 3: 1 cells where the header has 2"),
    ("a.csv", b'q,a\n"x\ny",2\n1,2,3\n', "a.csv, line 4: 3 cells where the header has 2. Quote a cell"),
    ("a.csv", b"q,q\n1,2\n", "a.csv, line 1: the header names 'q' twice"),
    ("a.csv", b"q,\n1,2\n", "a.csv, line 1: the header has a column without a name"),
    ("a.csv", b"q,a\n1,\xff\n", "a.csv, line 2: this is not UTF-8"),
    ("a.csv", b'q,a\n1,"x"y\n', "a.csv, line 2: this is not CSV"),
    ("a.csv", b"", "a.csv: it holds no rows"),
    ("a.parquet", b"PAR1 no", "a.parquet: this is not a Parquet file"),
    ("a.txt", b"x", "a.txt is of no kind that can be read. Kinds: .json"),
]


@pytest.mark.parametrize(("name", "content", "said"), WRONG)
def test_a_wrong_file_is_named_by_line(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        list(opened(name, tmp_path))
    assert said in str(caught.value)


def test_a_missing_file_lists_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "answers.jsonl")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"there is no file .*answer\.jsonl\. Near it: answers\.jsonl\.$"):
        opened("answer.jsonl", tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        opened("absent/answers.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"lang": "en"}, "there is no column 'lang'. Did you mean 'language'?"),
        ({"language": "englsh"}, "no row has language = englsh. Did you mean 'english'?"),
        ({"language": "english", "q": "2"}, "no row fulfils all conditions"),
    ],
)
def test_a_condition_that_keeps_nothing_says_why(where: dict[str, str], said: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("q,language\n1,english\n2,german\n")
    with pytest.raises(DataError) as caught:
        list(opened("a.csv", tmp_path, where=where))
    assert said in str(caught.value)


def test_splits_of_a_saved_data_set(tmp_path: Path) -> None:
    parts = {"train": datasets.Dataset.from_list(ROWS[:2]), "test": datasets.Dataset.from_list(ROWS[2:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    assert len(list(opened("saved", tmp_path))) == 2
    assert [row.where for row in opened("saved", tmp_path, split="test")] == ["saved [test], row 1"]
    with pytest.raises(DataError, match=r"there is no split 'tests'. Did you mean 'test'"):
        opened("saved", tmp_path, split="tests")
    parts["train"].save_to_disk(str(tmp_path / "one"))
    with pytest.raises(DataError, match="without splits"):
        opened("one", tmp_path, split="test")
    with pytest.raises(DataError, match="not a saved data set"):
        opened(".", tmp_path)


def test_a_hub_name_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="save_to_disk"):
        opened("someone/nothing-of-the-kind", tmp_path)


OWN = """
import datasets
ITERATOR = iter([{"q": 1}])
def dataset():
    return datasets.Dataset.from_list([{"q": "x"}])
def numbers():
    return [1]
def text():
    return "rows"
def fails():
    raise RuntimeError("no key")
"""


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        ("ITERATOR", "can be read only once"),
        ("numbers", "my_own:numbers, row 1: a row must be a mapping"),
        ("text", "my_own:text gives a str"),
        ("fails", "my_own:fails failed: RuntimeError: no key"),
    ],
)
def test_own_code_that_gives_no_rows(attribute: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    with pytest.raises(DataError) as caught:
        list(opened(f"my_own:{attribute}", tmp_path))
    assert said in str(caught.value)


def test_own_code_may_give_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "my_own.py").write_text(OWN)
    assert [dict(row.values) for row in opened("my_own:dataset", tmp_path)] == [{"q": "x"}]


def test_distinct_sorts_numbers_as_numbers_and_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("y\n10\n9\n\n1\n")
    found = opened("a.csv", tmp_path)
    assert distinct(found, "y") == ["1", "9", "10"]
    with pytest.raises(DataError, match="more than 2 different values"):
        distinct(found, "y", most=2)
