"""FedNLP's files: written and read again, used as they are, and what is said when something in them is wrong."""

from __future__ import annotations

import builtins
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from project import CLASSIFY, experiment

from fedloom import api
from fedloom.config.schema import Data, DirichletPartition, GivenPartition, IidPartition
from fedloom.data.fednlp import fednlp_rows, read_partition, write_data, write_partition
from fedloom.data.partition import deal, partition_rows
from fedloom.data.sources import Source, open_source
from fedloom.errors import ConfigError, DataError
from fedloom.local.prepare import prepare_data

NEWS = [{"text": f"tëxt {i}", "label": f"l{i % 3}"} for i in range(6)]
SQUAD = [
    {"context": "In Köln the café is old.", "question": "Where?", "answer": "Köln", "answer_start": 3},
    {"context": "No one.", "question": "Who?", "answer": "", "answer_start": 0},
]


def opened(name: str, base: Path, **more: Any) -> Source:
    return open_source(Data(source=name, partition=IidPartition(kind="iid", clients=1), **more), base)


def news(folder: Path) -> Path:
    write_data(folder / "news.h5", NEWS, test=[1, 4])
    return folder / "news.h5"


def test_the_layout_is_fednlps(tmp_path: Path) -> None:
    """As its loaders find it: X/<index>, Y/<index>, and the lists in `attributes`."""
    with h5py.File(news(tmp_path)) as file:
        assert file["X/4"][()].decode("utf-8") == "tëxt 4" and file["Y/4"][()].decode("utf-8") == "l1"
        attributes = json.loads(file["attributes"][()])
    assert attributes == {
        "task_type": "text_classification",
        "index_list": [0, 1, 2, 3, 4, 5],
        "train_index_list": [0, 2, 3, 5],
        "test_index_list": [1, 4],
        "label_vocab": {"l0": 0, "l1": 1, "l2": 2},
        "num_labels": 3,
    }
    write_data(tmp_path / "squad.h5", SQUAD, task="span_extraction")
    with h5py.File(tmp_path / "squad.h5") as file:
        assert file["Y/0"][()].tolist() == [3, 7] and file["context_X/0"][()].decode("utf-8")[3:7] == "Köln"
    write_partition(tmp_path / "part.h5", "uniform", [([0, 2], [1]), ([3, 5], [4])])
    with h5py.File(tmp_path / "part.h5") as file:
        assert file["uniform/n_clients"][()] == 2
        assert file["/uniform/partition_data/1/train/"][()].tolist() == [3, 5]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("text_classification", NEWS),
        ("span_extraction", SQUAD),
        ("seq_tagging", [{"tokens": ["Öl", "is"], "tags": ["B", "O"]}, {"tokens": ["x"], "tags": ["O"]}]),
        ("seq2seq", [{"text": "hi", "target": "salut"}, {"text": "no", "target": "non"}]),
        ("lm", [{"text": "once"}, {"text": "upon"}]),
    ],
)
def test_rows_come_back(task: str, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_data(tmp_path / "data.h5", rows, task=task, test=[1])
    found = opened("data.h5", tmp_path)
    assert found.columns == (*rows[0], "split")
    for _ in range(2):
        read = list(found)
        expected = [row | {"split": "test" if i == 1 else "train"} for i, row in enumerate(rows)]
        assert [dict(row.values) for row in read] == expected
        assert [(row.index, row.where) for row in read] == [(i, f"data.h5, index {i}") for i in range(len(rows))]
    assert [row.index for row in opened("data.h5", tmp_path, where={"split": "test"})] == [1]


def test_indices_keep_their_order_and_their_numbers(tmp_path: Path) -> None:
    """The loaders of FedNLP mix them up; a partition names them."""
    with h5py.File(news(tmp_path), "a") as file:
        attributes = json.loads(file["attributes"][()])
        del file["attributes"]
        file["attributes"] = json.dumps(attributes | {"index_list": [5, 0, 3]})
    assert [(row.index, row.values["text"]) for row in opened("news.h5", tmp_path)] == [
        (i, f"tëxt {i}") for i in (5, 0, 3)
    ]


def test_reading_is_lazy(tmp_path: Path) -> None:
    with h5py.File(news(tmp_path), "a") as file:
        del file["X/5"]
    rows = fednlp_rows(tmp_path / "news.h5")
    assert [next(rows).index for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"news\.h5, index 5: there is no X/5"):
        next(rows)


def _replace(file: Any, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: _replace(f, "Y/2", "sport"), "news.h5, index 2: the label 'sport' is not in label_vocab"),
        (lambda f: _replace(f, "X/3", np.bytes_(b"\xe9")), "news.h5, index 3: X/3 is not UTF-8"),
        (lambda f: _replace(f, "attributes", "{"), "news.h5: `attributes` is not JSON"),
        (lambda f: _replace(f, "attributes", "[]"), "news.h5: `attributes` is not a JSON object"),
        (lambda f: _replace(f, "attributes", '{"index_list": ["x"]}'), "an index is not a whole number"),
        (lambda f: f.__delitem__("attributes"), "news.h5: this is no FedNLP data file: it has no `attributes`"),
        (lambda f: f.__delitem__("X"), "news.h5: this is no FedNLP data file: it has no group `X`"),
    ],
)
def test_what_is_wrong_in_a_data_file(spoil: Any, said: str, tmp_path: Path) -> None:
    with h5py.File(news(tmp_path), "a") as file:
        spoil(file)
    with pytest.raises(DataError) as error:
        list(opened("news.h5", tmp_path))
    assert said in str(error.value)


def test_an_answer_outside_its_context_names_the_row(tmp_path: Path) -> None:
    write_data(tmp_path / "squad.h5", SQUAD, task="span_extraction")
    with h5py.File(tmp_path / "squad.h5", "a") as file:
        _replace(file, "Y/1", (2, 99))
    with pytest.raises(DataError, match=r"squad\.h5, index 1: Y/1 is \[2, 99\]"):
        list(opened("squad.h5", tmp_path))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(DataError, match=r"text\.h5: this is not an HDF5 file"):
        opened("text.h5", tmp_path)
    write_partition(tmp_path / "part.h5", "uniform", [([0], [1])])
    with pytest.raises(DataError, match="It is a partition file"):
        opened("part.h5", tmp_path)
    with pytest.raises(DataError, match="is it the data file"):
        read_partition(news(tmp_path), "uniform")
    with pytest.raises(DataError, match=r"no partition method 'uniforn'. Did you mean 'uniform'"):
        read_partition(tmp_path / "part.h5", "uniforn")


def test_nothing_is_overwritten_and_no_part_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is overwritten"):
        write_data(news(tmp_path), NEWS)
    with pytest.raises(DataError, match=r"row 1: there is no column 'label'"):
        write_data(tmp_path / "half.h5", [NEWS[0], {"text": "x"}])
    assert not (tmp_path / "half.h5").exists()
    write_partition(tmp_path / "part.h5", "one", [([0], [])])
    write_partition(tmp_path / "part.h5", "two", [([0], []), ([1], [])])
    assert len(read_partition(tmp_path / "part.h5", "two")) == 2
    with pytest.raises(DataError, match="holds the method 'two' already"):
        write_partition(tmp_path / "part.h5", "two", [])


def test_without_h5py_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **more: Any) -> Any:
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **more)

    news(tmp_path)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r"pip install 'fedloom\[hdf5\]'"):
        opened("news.h5", tmp_path)


# --- who holds which ---


class Columns:
    """A table of rows whose numbers in the source are given."""

    def __init__(self, numbers: list[int], total: int) -> None:
        self._numbers, self.source_rows = np.array(numbers), total

    def column(self, name: str) -> Any:
        return self._numbers


def dealt(folder: Path, clients: Any, numbers: list[int], total: int, **more: Any) -> Any:
    write_partition(folder / "part.h5", "m", clients)
    spec = GivenPartition(kind="given", file="part.h5", method="m")
    data = Data(source="x", partition=spec, min_rows=1, **more)
    return deal(data, np.arange(len(numbers)), Columns(numbers, total), seed=0, base=folder)


def test_train_rows_train_and_test_rows_judge(tmp_path: Path) -> None:
    # Index 3 could not be used: table rows 0..6 are indices 0, 1, 2, 4, 5, 6, 7.
    clients = [([7, 0], [1]), ([3, 4], [2, 5]), ([6], [])]
    held_out, train, validation = dealt(tmp_path, clients, [0, 1, 2, 4, 5, 6, 7], 8)
    assert train.clients == validation.clients == ["0", "1", "2"]
    assert [train.rows(k).tolist() for k in range(3)] == [[0, 6], [3], [5]]
    assert [validation.rows(k).tolist() for k in range(3)] == [[1], [2, 4], []]
    assert held_out.tolist() == [1, 2, 4]


def test_clients_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    clients = [([i], [11 + i]) for i in range(11)]
    _, train, _ = dealt(tmp_path, clients, list(range(22)), 22)
    assert train.clients == [str(k) for k in range(11)] and train.indices.tolist() == list(range(11))


@pytest.mark.parametrize(
    ("clients", "said"),
    [
        ([([0, 1], [2]), ([1], [3])], r"part\.h5, client '1', train: row 1 is given more than once"),
        ([([0, 1], [1, 2, 3])], r"client '0', test: row 1 is given more than once"),
        ([([0, 1], [2])], "1 rows belong to no client, the first is row 3"),
        ([([0, 1], [2, 4])], "4 is not a row. Rows are counted from 0 to 3"),
        ([([0, 1], [2, 3]), ([], [])], "1 of 2 clients have fewer than 1 rows: 1 0"),
        ([([0, 1, 2, 3], [])], "no test rows to judge a model on"),
        ([([0.5, 1], [2, 3])], None),
    ],
)
def test_what_is_wrong_in_a_partition(clients: Any, said: str | None, tmp_path: Path) -> None:
    if said is None:
        with h5py.File(tmp_path / "part.h5", "w") as file:
            file["m/partition_data/0/train"] = np.array([0.5])
            file["m/partition_data/0/test"] = np.array([1])
        with pytest.raises(DataError, match="and not indices"):
            read_partition(tmp_path / "part.h5", "m")
        return
    with pytest.raises(DataError, match=said):
        dealt(tmp_path, clients, [0, 1, 2, 3], 4)


def test_a_lost_client_is_noticed(tmp_path: Path) -> None:
    write_partition(tmp_path / "part.h5", "m", [([0], [1]), ([2], [3])])
    with h5py.File(tmp_path / "part.h5", "a") as file:
        del file["m/partition_data/1"]
    with pytest.raises(DataError, match="says that it has 2 clients, and 1 are there"):
        read_partition(tmp_path / "part.h5", "m")


def _files(folder: Path) -> None:
    rows = [{"text": f"w{i} w{i + 1}", "label": f"label-{i % 3}"} for i in range(36)]
    write_data(folder / "agnews_data.h5", rows, test=range(30, 36))
    clients = [(range(k * 10, k * 10 + 10), range(30 + 2 * k, 32 + 2 * k)) for k in range(3)]
    write_partition(folder / "agnews_partition.h5", "uniform_client_3", clients)  # type: ignore[arg-type]


GIVEN = {"kind": "given", "file": "agnews_partition.h5", "method": "uniform_client_3"}


def test_existing_files_drop_in(tmp_path: Path) -> None:
    _files(tmp_path)
    found = prepare_data(
        experiment(tmp_path, CLASSIFY, data={"source": "agnews_data.h5", "max_length": 16, "partition": GIVEN})
    )
    assert found.labels == ["label-0", "label-1", "label-2"]
    assert found.train.sizes.tolist() == [10, 10, 10] and found.validation.sizes.tolist() == [2, 2, 2]
    assert found.held_out.tolist() == list(range(30, 36))


def test_a_run_on_existing_files(tmp_path: Path) -> None:
    """What is judged each round are the test rows of all clients, and each client's are its own."""
    _files(tmp_path)
    data = {"source": "agnews_data.h5", "max_length": 16, "partition": GIVEN}
    loaded = experiment(tmp_path, CLASSIFY, data=data, federation__rounds=1)
    run = api.run(loaded, out=tmp_path / "runs")
    clients = [json.loads(line) for line in (run.path / "clients.jsonl").read_text().splitlines()]
    judged = [r for r in clients if r.get("evaluated") == "own" and r["round"] == 1]
    assert [(r["client"], r["rows"]) for r in judged] == [("0", 2), ("1", 2), ("2", 2)]
    record = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["eval_accuracy"] == pytest.approx(np.mean([r["eval_accuracy"] for r in judged]))
    assert api.load(run.path / "config.yaml", base=tmp_path).data.partition == loaded.data.partition


@pytest.mark.parametrize(
    ("partition", "more", "said"),
    [
        (GIVEN, {"held_out": 0.2}, "data.held_out"),
        (GIVEN, {"validation": 0.2}, "data.validation"),
        ({"kind": "given", "file": "agnews_partition.h5"}, {}, "uniform_client_1000"),
    ],
)
def test_options_that_the_file_decides_are_refused(
    partition: Any, more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    _files(tmp_path)
    with pytest.raises(ConfigError, match=said):
        experiment(tmp_path, CLASSIFY, data={"source": "agnews_data.h5", "partition": partition} | more)


# --- how the house's own partitions compare with FedNLP's ---


class Labels:
    """A table of rows with labels."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels, self.source_rows = labels.astype(np.int32), len(labels)

    def codes(self, name: str) -> Any:
        return self.labels, [str(i) for i in range(int(self.labels.max()) + 1)]


def _divergence(shares: np.ndarray) -> float:
    """The mean over pairs of clients of the Jensen-Shannon divergence of their labels."""

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)

    pairs = [(a, b) for i, a in enumerate(shares) for b in shares[:i]]
    return float(np.mean([entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2 for a, b in pairs]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform_is_even_and_a_higher_alpha_more_alike(seed: int, tmp_path: Path) -> None:
    table = Labels(np.arange(4000) % 4)
    rows = np.arange(4000)
    even = partition_rows(IidPartition(kind="iid", clients=30), rows, table, seed=seed, base=tmp_path)  # type: ignore[arg-type]
    assert set(even.sizes.tolist()) == {133, 134} and sorted(even.indices.tolist()) == rows.tolist()
    found = []
    for alpha in (0.1, 1.0, 10.0, 100.0):
        spec = DirichletPartition(kind="dirichlet", clients=20, alpha=alpha, label="y", min_rows=1)
        parts = [partition_rows(spec, rows, table, seed=seed, base=tmp_path) for _ in range(2)]  # type: ignore[arg-type]
        assert parts[0].digest == parts[1].digest and sorted(parts[0].indices.tolist()) == rows.tolist()
        counts = np.array([np.bincount(table.labels[parts[0].rows(k)], minlength=4) for k in range(20)])
        found.append(_divergence(counts / counts.sum(1, keepdims=True)))
    assert all(a > b for a, b in pairwise(found)), found
