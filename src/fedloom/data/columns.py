"""Columns written to disk as they come, so that a table of any size is built in constant memory."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fedloom.errors import DataError

__all__ = ["ColumnWriter", "writer_for"]

_BUFFER = 1 << 16


class _Spool:
    """Numbers appended to a file, then seen again as one Arrow buffer that is the mapped file."""

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path, self.dtype, self.count = path, dtype, 0
        self._file = path.open("wb", buffering=_BUFFER)

    def add(self, values: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(values).data)
        self.count += len(values)

    def buffer(self) -> pa.Buffer:
        self._file.close()
        if self.count == 0:  # an empty file cannot be mapped
            return pa.py_buffer(b"")
        with pa.memory_map(str(self.path)) as file:
            return file.read_buffer()


class ColumnWriter(ABC):
    """One column: `add` each row's value, then `finish` once."""

    @abstractmethod
    def add(self, value: Any) -> None:
        """Append a row's value."""

    @abstractmethod
    def finish(self, digest: Any) -> pa.Array:
        """The whole column, its bytes fed to `digest`."""


class _Numbers(ColumnWriter):
    def __init__(self, name: str, dtype: np.dtype[Any], stem: Path) -> None:
        self._name, self._spool = name, _Spool(stem.with_suffix(".numbers"), dtype)

    def add(self, value: Any) -> None:
        self._spool.add(np.asarray([value], dtype=self._spool.dtype))

    def finish(self, digest: Any) -> pa.Array:
        buffer = self._spool.buffer()
        digest.update(self._name.encode() + b"\0" + self._spool.dtype.str.encode())
        digest.update(buffer)
        return _array(self._spool.dtype, self._spool.count, buffer)


class _Ragged(ColumnWriter):
    def __init__(self, name: str, dtype: np.dtype[Any], stem: Path) -> None:
        self._name = name
        self._values = _Spool(stem.with_suffix(".values"), dtype)
        self._offsets = _Spool(stem.with_suffix(".offsets"), np.dtype(np.int64))
        self._offsets.add(np.zeros(1, dtype=np.int64))

    def add(self, value: Any) -> None:
        if value.dtype != self._values.dtype or value.ndim != 1:
            raise DataError(f"the encoder's column {self._name!r} changes its type or shape between rows")
        self._values.add(value)
        self._offsets.add(np.asarray([self._values.count], dtype=np.int64))

    def finish(self, digest: Any) -> pa.Array:
        values, offsets = self._values.buffer(), self._offsets.buffer()
        digest.update(self._name.encode() + b"\0" + self._values.dtype.str.encode())
        digest.update(values)
        digest.update(offsets)
        return pa.LargeListArray.from_arrays(
            _array(np.dtype(np.int64), self._offsets.count, offsets),
            _array(self._values.dtype, self._values.count, values),
        )


class _Texts(ColumnWriter):
    """Text as codes: a value is kept once, so that ten million rows of a few values cost four bytes each."""

    def __init__(self, name: str, stem: Path) -> None:
        self._name, self._spool = name, _Spool(stem.with_suffix(".codes"), np.dtype(np.int32))
        self._codes: dict[str, int] = {}

    def add(self, value: Any) -> None:
        code = self._codes.setdefault(value, len(self._codes)) if value else -1
        self._spool.add(np.asarray([code], dtype=np.int32))

    def finish(self, digest: Any) -> pa.Array:
        buffer = self._spool.buffer()
        digest.update(self._name.encode() + b"\0" + "\0".join(self._codes).encode())
        digest.update(buffer)
        codes = np.frombuffer(buffer, dtype=np.int32)
        missing = codes < 0
        indices = pa.array(codes, mask=missing) if missing.any() else _array(codes.dtype, len(codes), buffer)
        return pa.DictionaryArray.from_arrays(indices, pa.array(list(self._codes), type=pa.string()))


def writer_for(name: str, value: Any, folder: Path) -> ColumnWriter:
    """A writer for the kind of a column's first value: an array, text, or a number."""
    stem = folder / hashlib.sha256(name.encode()).hexdigest()[:16]  # a column may be called anything, a file not
    if isinstance(value, np.ndarray):
        return _Ragged(name, value.dtype, stem)
    if isinstance(value, str):
        return _Texts(name, stem)
    if isinstance(value, float | np.floating):
        return _Numbers(name, np.dtype(np.float64), stem)
    if isinstance(value, int | np.integer):
        return _Numbers(name, np.dtype(np.int64), stem)
    raise DataError(f"the encoder's column {name!r} holds a {type(value).__name__}", fix="Give an array or a number")


def _array(dtype: np.dtype[Any], count: int, buffer: pa.Buffer) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(dtype), count, [None, buffer])
