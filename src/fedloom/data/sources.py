"""Where rows come from: files, `datasets`, the hub, packaged samples, and the user's own code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from fedloom.config.reference import is_reference, line_of, load_attribute
from fedloom.config.schema import Data
from fedloom.data.fednlp import fednlp_columns, fednlp_rows
from fedloom.data.fetch import fetch
from fedloom.data.fields import Row, as_text, check_fields, map_fields
from fedloom.data.readers import FILE_READERS, FileReader, dataset_rows, parquet_columns, parquet_rows
from fedloom.data.samples import check_sample, is_sample
from fedloom.errors import DataError, nearest

__all__ = ["Row", "Source", "check_fields", "distinct", "map_fields", "open_source"]

Where = Mapping[str, str | int | list[str | int]]
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")

# Objects of a JSON file need not have the same keys: so many are looked at to know the columns.
_LOOK_AHEAD = 1000

# Files that say what their columns are.
_COLUMNS: Mapping[FileReader, Callable[[Path], tuple[str, ...]]] = {
    parquet_rows: parquet_columns,
    fednlp_rows: fednlp_columns,
}


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again: `for row in source`.

    name: as messages call it; columns: their names; read: gives every row of the source; content: gives the digest of
    the whole source. `where` keeps rows by value, then `limit` keeps the first of them.
    """

    name: str
    columns: tuple[str, ...]
    read: Callable[[], Iterable[Row]]
    content: Callable[[], str]
    where: Where
    limit: int | None = None

    def __iter__(self) -> Iterator[Row]:
        rows, empty = islice(self._kept(), self.limit), True
        for row in rows:
            empty = False
            yield row
        if empty:
            raise self._no_rows()

    def _kept(self) -> Iterator[Row]:
        wanted = {column: _texts(values) for column, values in self.where.items()}
        for row in self.read():
            if all(str(row.values.get(column)) in values for column, values in wanted.items()):
                yield row

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what is read: the content, and which rows of it."""
        kept = json.dumps([{k: sorted(_texts(v)) for k, v in sorted(self.where.items())}, self.limit])
        return hashlib.sha256(f"{self.content()} {kept}".encode()).hexdigest()

    def _no_rows(self) -> DataError:
        if not self.where:
            return DataError("it holds no rows", where=self.name)
        seen: dict[str, set[str]] = {column: set() for column in self.where}
        for row in islice(self.read(), 100_000):
            for column, values in seen.items():
                values.add(str(row.values.get(column)))
        for column, values in seen.items():
            if not _texts(self.where[column]) & values:
                wanted = ", ".join(sorted(_texts(self.where[column])))
                fix = nearest(wanted, sorted(values)[:50]) if values else "The source holds no rows at all"
                return DataError(f"no row has {column} = {wanted}", where=f"{self.name}, data.where", fix=fix)
        return DataError("no row fulfils all conditions of data.where", where=self.name)


def _texts(values: str | int | list[str | int]) -> set[str]:
    # CSV holds only text: 2003 in the experiment file must match the cell "2003".
    return {str(value) for value in (values if isinstance(values, list) else [values])}


def distinct(source: Source, column: str, most: int = 10_000) -> list[str]:
    """The values of a column, sorted (as numbers where all are); raises DataError for an unknown column or more than
    `most`.
    """
    _check_column(column, source.columns, source.name)
    values: set[str] = set()
    for row in source:
        values.add(as_text(row.values.get(column), column, row.where))
        if len(values) > most:
            raise DataError(f"the column {column!r} has more than {most} different values", where=source.name)
    values.discard("")
    if all(re.fullmatch(r"-?\d+", value) for value in values):
        return sorted(values, key=int)
    return sorted(values)


def open_source(data: Data, base: Path) -> Source:
    """The rows that an experiment's `data` section names; relative paths start from `base`.

    A hub data set with several configurations is written `owner/name:configuration`. Nothing but the column names is
    read here. Raises DataError for a source, split or column that does not exist.
    """
    found = _open(data.source, data.split, base)
    for column in data.where:
        _check_column(column, found.columns, f"{found.name}, data.where")
    return replace(found, where=data.where, limit=data.limit)


def _open(text: str, split: str, base: Path) -> Source:
    if is_sample(text):
        return _sample(text)
    path = base / Path(text).expanduser()
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path, split)
    if is_reference(text):
        return _own(text, base)
    if path.suffix.lower() in FILE_READERS or text.startswith((".", "/", "~")) or not _HUB_NAME.fullmatch(text):
        raise _no_file(path, base)
    return _hub(text, split, path)


def _sample(text: str) -> Source:
    asset = check_sample(text, "dataset")
    folder = fetch(asset.name)

    def read() -> Iterator[Row]:
        for row in parquet_rows(folder / "rows.parquet"):
            places = {column: str(folder / str(row.values[column])) for column in asset.paths}
            yield Row({**row.values, **places}, f"{text}, row {row.index + 1}", row.index)

    return Source(text, asset.columns, read, lambda: asset.digest, {})


def _file(path: Path) -> Source:
    reader = FILE_READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path.name} is of no kind that can be read", fix=f"Kinds: {', '.join(FILE_READERS)}")
    columns = _COLUMNS[reader](path) if reader in _COLUMNS else _columns_of(reader(path))

    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return Source(path.name, columns, lambda: reader(path), digest, {})


def _columns_of(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple({column: None for row in islice(rows, _LOOK_AHEAD) for column in row.values})


def _folder(path: Path, split: str) -> Source:
    if not any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        files = [f.name for f in sorted(path.iterdir()) if f.suffix.lower() in FILE_READERS]
        fix = f"Name one file: {', '.join(files[:5])}" if files else "Save one with Dataset.save_to_disk"
        raise DataError("this folder is not a saved data set of `datasets`", where=str(path), fix=fix)
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(f"`datasets` cannot read this folder: {error}", where=str(path)) from error
    if isinstance(found, dict):
        if split not in found:
            raise DataError(f"there is no split {split!r}", where=path.name, fix=nearest(split, list(found)))
        return _of_dataset(found[split], f"{path.name} [{split}]")
    if split not in ("train", str(found.split)):
        raise DataError(
            f"there is no split {split!r}", where=path.name, why="it was saved as one data set without splits"
        )
    return _of_dataset(found, path.name)


def _of_dataset(dataset: Any, name: str) -> Source:
    # `datasets` identifies a data set by its origin and every transformation since.
    return Source(
        name, tuple(dataset.column_names), lambda: dataset_rows(dataset, name), lambda: str(dataset._fingerprint), {}
    )


def _hub(text: str, split: str, path: Path) -> Source:
    import datasets

    name, _, configuration = text.partition(":")
    try:
        return _of_dataset(datasets.load_dataset(name, configuration or None, split=split), f"{text} [{split}]")
    except Exception as error:
        cause = str(error).strip().splitlines()
        raise DataError(
            f"there is no file {path}, and the hub data set {text!r} [{split}] could not be loaded",
            why=f"{type(error).__name__}: {cause[0][:300] if cause else 'no message'}",
            fix="Check the name, the split and the network. Without a network: save it elsewhere with "
            "Dataset.save_to_disk and name that folder, or use a packaged sample (`fedloom list datasets`)",
        ) from error


def _own(text: str, base: Path) -> Source:
    """The user's own callable (called without arguments, once a pass), list or data set."""
    found = load_attribute(text, base)

    def rows() -> object:
        if not callable(found):
            return found
        try:
            return found()
        except Exception as error:
            raise DataError(
                f"{text} failed: {type(error).__name__}: {error}", fix="It is called without arguments"
            ) from error

    first = rows()
    if hasattr(first, "column_names") and hasattr(first, "_fingerprint"):
        return _of_dataset(first, text)
    if not isinstance(first, Iterable) or isinstance(first, str | Mapping):
        raise DataError(
            f"{text} gives a {type(first).__name__}", fix="Give an iterable of mappings, or a datasets.Dataset"
        )
    if not callable(found) and isinstance(first, Iterator):
        raise DataError(f"{text} can be read only once", fix="Give a list, or a function that returns the rows")

    def read() -> Iterator[Row]:
        given, index = iter(rows()), 0  # type: ignore[call-overload]
        while True:
            where = f"{text}, row {index + 1}"
            try:
                values = next(given)
            except StopIteration:
                return
            except Exception as error:
                place = line_of(error, text.partition(":")[0])
                raise DataError(f"it failed: {type(error).__name__}: {error}{place}", where=where) from error
            if not isinstance(values, Mapping):
                raise DataError(f"a row must be a mapping, this is a {type(values).__name__}", where=where)
            yield Row(values, where, index)
            index += 1

    def digest() -> str:
        summary = hashlib.sha256()
        for row in read():
            summary.update(json.dumps(dict(row.values), sort_keys=True, default=str).encode() + b"\n")
        return summary.hexdigest()

    return Source(text, _columns_of(read()), read, digest, {})


def _check_column(column: str, columns: tuple[str, ...], where: str) -> None:
    if column not in columns:
        raise DataError(f"there is no column {column!r}", where=where, fix=nearest(column, columns))


def _no_file(path: Path, base: Path) -> DataError:
    folder = path.parent
    if not folder.is_dir():
        return DataError(f"there is no folder {folder}", where="data.source", fix=f"Relative paths start from {base}")
    names = [f.name for f in folder.iterdir() if f.is_dir() or f.suffix.lower() in FILE_READERS]
    close = get_close_matches(path.name, names, n=3, cutoff=0.5) or sorted(names)[:5]
    fix = f"Near it: {', '.join(close)}" if close else f"{folder} holds no data file"
    return DataError(f"there is no file {path}", where="data.source", fix=fix)
