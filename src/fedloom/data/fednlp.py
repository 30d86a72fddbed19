"""The HDF5 files of FedNLP (Lin et al. 2022, arXiv 2104.08815), which FwdLLM reads too: one of rows, one of who holds which.

Data file: `attributes` is a JSON text (index_list, train_index_list, test_index_list, label_vocab, task_type ...), and every value
is a data set of its own, named by the row's index:

    classification, sequence to sequence   X/<index>, Y/<index>: text
    tagging                                X/<index>, Y/<index>: lists of texts
    span extraction                        context_X/<index>, question_X/<index>: text; Y/<index>: the answer's first character and
                                           the one behind its last; perhaps Y_answer/<index>: its text
    language modelling                     X/<index>: text

Partition file: for every method (`uniform_client_1000`, `niid_label_clients=100_alpha=1.0`) `<method>/n_clients`, and for every
client `<method>/partition_data/<client>/train` and `.../test`: the indices of its rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.data.fields import Row
from fedloom.errors import DataError, nearest

__all__ = ["SUFFIXES", "fednlp_columns", "fednlp_rows", "read_partition", "write_data", "write_partition"]

SUFFIXES = (".h5", ".hdf5")
_SPLITS = ("train", "test")
# Our columns and their groups, by what a file holds.
_LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "span_extraction": {"context": "context_X", "question": "question_X", "answer": "Y_answer", "answer_start": "Y"},
    "text_classification": {"text": "X", "label": "Y"},
    "seq_tagging": {"tokens": "X", "tags": "Y"},
    "seq2seq": {"text": "X", "target": "Y"},
    "lm": {"text": "X"},
}


def fednlp_columns(path: Path) -> tuple[str, ...]:
    """The columns of a data file: its layout's own, and `split` (train or test) where the file divides its rows."""
    with _opened(path) as file:
        return (*_LAYOUTS[_layout(file, path)], *(["split"] if _split_of(file, path) else []))


def fednlp_rows(path: Path) -> Iterator[Row]:
    """Rows in the order of `index_list`, one read at a time; a row's number is its index in the file.

    Raises DataError that names the file and the index for a row that is missing, or is not as its layout says.
    """
    with _opened(path) as file:
        layout, split, labels = _layout(file, path), _split_of(file, path), _attributes(file, path).get("label_vocab")
        for index in _indices(file, path):
            where = f"{path.name}, index {index}"
            if layout == "span_extraction":
                values = _question(file, index, where)
            else:
                values = {column: _value(file, group, index, where) for column, group in _LAYOUTS[layout].items()}
            if layout == "text_classification" and labels and values["label"] not in labels:
                fix = nearest(str(values["label"]), list(labels)[:50])
                raise DataError(f"the label {values['label']!r} is not in label_vocab", where=where, fix=fix)
            if split:
                values["split"] = split.get(index)
            yield Row(values, where, index)


def read_partition(path: Path, method: str) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Of each client of a method: its rows' indices for `train` and for `test`.

    Raises DataError for a method that the file does not hold, and for a client that is not as the layout says.
    """
    with _opened(path) as file:
        group = file.get(f"{method}/partition_data")
        if group is None:
            found = [name for name in file if "partition_data" in getattr(file[name], "keys", list)()]
            fix = nearest(method, found) if found else "It holds no partition: is it the data file?"
            raise DataError(f"there is no partition method {method!r}", where=path.name, fix=fix)
        clients = {name: _client(group[name], f"{path.name}, client {name!r}") for name in sorted(group, key=_natural)}
        count = file.get(f"{method}/n_clients")
        if count is not None and int(count[()]) != len(clients):
            what = f"the method says that it has {int(count[()])} clients, and {len(clients)} are there"
            raise DataError(what, where=f"{path.name}, {method}", fix="The file is damaged or unfinished: make it anew")
        return clients


def write_data(
    path: Path, rows: Iterable[Mapping[str, Any]], *, task: str = "text_classification", test: Iterable[int] = ()
) -> None:
    """Write a data file of rows with the columns of a layout; those whose numbers are in `test` are the test rows.

    task: text_classification, span_extraction (columns context, question, answer, answer_start), seq_tagging, seq2seq or lm.
    Raises DataError when the file exists or a row lacks a column.
    """
    if task not in _LAYOUTS:
        raise DataError(f"there is no layout {task!r}", where=path.name, fix=nearest(task, list(_LAYOUTS)))
    held, labels, count = set(test), dict[str, int](), 0
    with _opened(path, "x") as file:
        for row in rows:
            if missing := [column for column in _LAYOUTS[task] if column not in row]:
                raise DataError(
                    f"there is no column {missing[0]!r}", where=f"row {count}", fix=nearest(missing[0], [*row])
                )
            for column, group in _LAYOUTS[task].items():
                value = row[column]
                if column == "answer_start":
                    value = (int(value), int(value) + len(row["answer"]))
                file[f"{group}/{count}"] = _texts(value) if task == "seq_tagging" else value
            if task == "text_classification":
                labels.setdefault(str(row["label"]), len(labels))
            count += 1
        attributes = {"task_type": task, "index_list": list(range(count))}
        attributes["train_index_list"] = [i for i in range(count) if i not in held]
        attributes["test_index_list"] = sorted(held)
        if labels:
            attributes |= {"label_vocab": labels, "num_labels": len(labels)}  # type: ignore[dict-item]
        file["attributes"] = json.dumps(attributes)


def write_partition(path: Path, method: str, clients: Sequence[tuple[Sequence[int], Sequence[int]]]) -> None:
    """Add a method to a partition file, or begin one: of each client, its indices for training and for testing.

    Raises DataError when the file holds that method already.
    """
    with _opened(path, "a") as file:
        if method in file:
            raise DataError(f"the file holds the method {method!r} already", where=path.name, fix="Choose another name")
        file[f"{method}/n_clients"] = len(clients)
        for k, rows in enumerate(clients):
            for split, own in zip(_SPLITS, rows, strict=True):
                file[f"{method}/partition_data/{k}/{split}"] = np.asarray(own, dtype=np.int64)


@contextmanager
def _opened(path: Path, mode: str = "r") -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        fix = "Install it: pip install 'fedloom[hdf5]'"
        raise DataError("HDF5 files need the package h5py", where=path.name, fix=fix) from error
    try:
        file = h5py.File(path, mode)
    except FileExistsError as error:
        raise DataError("the file exists, and nothing is overwritten", where=str(path)) from error
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}", where=path.name) from error
    except OSError as error:
        raise DataError(f"this is not an HDF5 file: {error}", where=path.name) from error
    try:
        with file:
            yield file
    except BaseException:
        if mode == "x":
            path.unlink(missing_ok=True)
        raise


def _attributes(file: Any, path: Path) -> dict[str, Any]:
    if "attributes" not in file:
        fix = "It is a partition file: name the data file here" if _is_partition(file) else None
        raise DataError("this is no FedNLP data file: it has no `attributes`", where=path.name, fix=fix)
    try:
        found = json.loads(file["attributes"][()])
    except (ValueError, TypeError) as error:
        raise DataError(f"`attributes` is not JSON: {error}", where=path.name) from error
    if not isinstance(found, dict):
        raise DataError("`attributes` is not a JSON object", where=path.name)
    return found


def _is_partition(file: Any) -> bool:
    return any("partition_data" in getattr(file[name], "keys", list)() for name in file)


def _layout(file: Any, path: Path) -> str:
    """What the file says it is; not all say it."""
    attributes = _attributes(file, path)
    if "context_X" in file:
        return "span_extraction"
    if "X" not in file:
        raise DataError("this is no FedNLP data file: it has no group `X`", where=path.name)
    if attributes.get("task_type") in _LAYOUTS:
        return str(attributes["task_type"])
    return "lm" if "Y" not in file else "text_classification" if attributes.get("label_vocab") else "seq2seq"


def _indices(file: Any, path: Path) -> list[int]:
    listed = _attributes(file, path).get("index_list")
    try:
        if listed is not None:
            return [int(index) for index in listed]
        return sorted(int(index) for index in file["context_X" if "context_X" in file else "X"])
    except (TypeError, ValueError) as error:
        raise DataError(f"an index is not a whole number: {error}", where=path.name) from error


def _split_of(file: Any, path: Path) -> dict[int, str]:
    attributes = _attributes(file, path)
    return {int(i): split for split in _SPLITS for i in attributes.get(f"{split}_index_list") or ()}


def _value(file: Any, group: str, index: int, where: str) -> Any:
    """One value: text, a list of texts, or numbers."""
    try:
        value = file[group][str(index)][()]
    except KeyError as error:
        raise DataError(f"there is no {group}/{index}", where=where) from error
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, np.ndarray) and value.dtype == object:
            return [text.decode("utf-8") for text in value.tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"{group}/{index} is not UTF-8", where=where) from error
    return value.tolist()


def _question(file: Any, index: int, where: str) -> dict[str, Any]:
    context, question, span = (_value(file, group, index, where) for group in ("context_X", "question_X", "Y"))
    values = {"context": context, "question": question}
    if isinstance(span, str):
        return {**values, "answer": span, "answer_start": None}
    if not (isinstance(span, list) and len(span) == 2 and 0 <= span[0] <= span[1] <= len(context)):
        what = f"Y/{index} is {span}, and not the first and last character of an answer"
        raise DataError(what, where=where, why=f"the context has {len(context)} characters")
    start, end = map(int, span)
    answer = _value(file, "Y_answer", index, where) if "Y_answer" in file else context[start:end]
    return {**values, "answer": answer, "answer_start": start}


def _client(group: Any, where: str) -> dict[str, NDArray[np.int64]]:
    rows = {}
    for split in _SPLITS:
        if split not in group:
            raise DataError(f"there is no list {split!r}", where=where)
        found = np.asarray(group[split][()]).reshape(-1)
        if len(found) and found.dtype.kind not in "iu":
            raise DataError(f"{split!r} holds values of the type {found.dtype}, and not indices", where=where)
        rows[split] = found.astype(np.int64)
    return rows


def _texts(value: Sequence[str]) -> Any:
    import h5py

    return np.array(list(value), dtype=h5py.string_dtype("utf-8"))


def _natural(name: str) -> tuple[bool, int, str]:
    """Numbers by size, before words by letter."""
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)
