"""The run directory: created whole, never overwritten, used by one process at a time."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
from safetensors import SafetensorError

from fedloom.errors import RunError
from fedloom.files import write_atomic
from fedloom.tracking.reading import RunArgumentError, no_run

__all__ = ["RunDir", "read_manifest", "writing"]

_to_json = json.JSONEncoder(allow_nan=False).encode
_RECORDS = ("metrics.jsonl", "clients.jsonl", "layers.jsonl", "events.jsonl")


class _Log(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: what cannot be logged is also an event, and its failure is raised."""


class RunDir:
    """One run's folder, locked while it is open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = filelock.FileLock(path / ".lock")
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise RunError(
                "another process is using this run",
                where=str(path),
                fix="wait for it to end, or stop it, then try again",
            ) from error
        self._end_last_event()
        self._log = _Log(path / "log.txt", encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("fedloom").addHandler(self._log)
        logging.getLogger("fedloom").setLevel(logging.INFO)

    @classmethod
    def create(cls, path: Path, config: str, manifest: Mapping[str, Any], *, numbered: bool = True) -> RunDir:
        """A new folder at `path`, or at `path-2`, `path-3`, ... when it is taken; it appears with its config and manifest in it.

        Raises RunError when it is taken and may not be numbered, RunArgumentError when it cannot be made.
        """
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            (aside / "checkpoints").mkdir()
            write_atomic(aside / "config.yaml", config)
            write_atomic(aside / "manifest.json", json.dumps(manifest, indent=1))
            for number in range(1, 10_000 if numbered else 2):
                target = path if number == 1 else path.with_name(f"{path.name}-{number}")
                try:
                    aside.rename(target)
                except OSError:
                    if not target.exists():
                        raise
                else:
                    return cls(target)
        except OSError as error:
            raise RunArgumentError(
                f"the run directory cannot be made: {error.strerror}", where=str(path), fix="choose another `--out`"
            ) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        raise RunError("the run directory is taken", where=str(path), fix="choose another name")

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run.

        Raises RunArgumentError when the folder holds none.
        """
        read_manifest(path)
        return cls(path)

    def close(self) -> None:
        """Give the folder back."""
        logging.getLogger("fedloom").removeHandler(self._log)
        with suppress(OSError):  # what a full disk has refused is still to be flushed
            self._log.close()
        self._lock.release()

    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands."""
        return read_manifest(self.path)

    def update_manifest(self, **changes: Any) -> None:
        """Change some keys of the manifest, atomically."""
        with writing("manifest.json", self.path):
            write_atomic(self.path / "manifest.json", json.dumps(self.manifest() | changes, indent=1))

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Append one round to `metrics.jsonl`."""
        self._append("metrics.jsonl", [record])

    def clients(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append client records to `clients.jsonl`."""
        self._append("clients.jsonl", records)

    def layers(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append records of layers to `layers.jsonl`."""
        self._append("layers.jsonl", records)

    def event(self, round: int, kind: str, text: str) -> None:
        """Append one event to `events.jsonl` and to the log."""
        level = logging.WARNING if kind in ("drop", "warning", "failure") else logging.INFO
        logging.getLogger("fedloom").log(level, "round %d: %s: %s", round, kind, text)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._append("events.jsonl", [{"time": now, "round": round, "kind": kind, "text": text}])

    def positions(self) -> dict[str, int]:
        """The present length of each record file."""
        return {name: self._size(name) for name in _RECORDS}

    def rewind(self, positions: Mapping[str, int]) -> None:
        """Cut the record files back to earlier lengths; events after them stay, for they did happen."""
        for name in _RECORDS:
            if name != "events.jsonl" and self._size(name) > positions.get(name, 0):
                os.truncate(self.path / name, positions.get(name, 0))

    def _size(self, name: str) -> int:
        file = self.path / name
        return file.stat().st_size if file.exists() else 0

    def _append(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        if not records:
            return
        try:
            lines = [_to_json(record) + "\n" for record in records]
        except ValueError:
            for record in records:
                _check_finite(record)
            raise
        with writing(name, self.path), (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(lines)

    def _end_last_event(self) -> None:
        """Cut off an event that a crash or a full disk left half written: the next one begins a line."""
        file = self.path / "events.jsonl"
        if file.exists() and not (content := file.read_bytes()).endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a run directory.

    Raises RunArgumentError when the folder holds no run.
    """
    if not (path / "config.yaml").is_file() or not (path / "manifest.json").is_file():
        raise no_run(path)
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError("manifest.json is damaged", where=str(path), why=str(error), fix="begin a new run") from error
    return manifest


@contextmanager
def writing(name: str, path: Path) -> Iterator[None]:
    """Tell of a disk that refuses what is written into a run directory, as a RunError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        fix = "make room and run `fedloom resume`"
        raise RunError(f"{name} cannot be written: {why}", where=str(path), fix=fix) from error


def _check_finite(record: Mapping[str, Any]) -> None:
    for key, value in record.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(
                f"{key} is {value}",
                where=f"round {record['round']}" + (f", client {record['client']!r}" if "client" in record else ""),
                why="training has diverged",
                fix="lower `local.lr` or set `local.clip`",
            )
