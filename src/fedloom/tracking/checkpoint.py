"""Checkpoints: whole or absent, verified by digest, kept by rule.

A checkpoint is a folder `round-000010/` with `state.safetensors` (vectors) and `state.json` (numbers, the positions in the record
files, and the SHA-256 of the vectors).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fedloom.config.schema import Checkpoints
from fedloom.errors import CheckpointError
from fedloom.files import atomic_folder

__all__ = ["CheckpointFolder", "NoCheckpoint", "Progress"]


class NoCheckpoint(CheckpointError):
    """The round that was asked for has no checkpoint."""

    exit_code = 2


_TENSORS = ("w", "server", "history", "selection")


@dataclass
class Progress:
    """The server's whole state after a round; what is not here does not survive."""

    round: int
    w: Tensor
    server: dict[str, Tensor] = field(default_factory=dict)
    history: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """What was sent as of earlier rounds to clients that are still under way: the vector `w`, and what goes beside it."""
    selection: dict[str, Tensor] = field(default_factory=dict)
    """What the schedule of the rounds must know to go on: the virtual time, and what the selector has learnt."""
    missed: int = 0
    """Clients in a row, up to now, whose updates did not come back."""
    best_round: int | None = None
    best_value: float | None = None
    stale: int = 0
    """Evaluations since the watched metric improved."""
    seconds: float = 0.0
    totals: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    """The length of each record file, in bytes, when this round was recorded."""


class CheckpointFolder:
    """`checkpoints/` of a run."""

    def __init__(self, folder: Path, keep: Checkpoints) -> None:
        self._folder, self._keep = folder, keep

    def clean(self) -> None:
        """Remove what a process that was killed while saving left behind."""
        for left in self._folder.glob(".round-*.tmp"):
            shutil.rmtree(left)

    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, ascending."""
        return sorted(int(p.name.removeprefix("round-")) for p in self._folder.glob("round-*"))

    def newest(self) -> int:
        """The newest round that has a checkpoint.

        Raises NoCheckpoint when there is none.
        """
        rounds = self.rounds()
        if not rounds:
            raise NoCheckpoint("there is no checkpoint yet", where=str(self._folder), fix="run `fedloom resume` first")
        return rounds[-1]

    def save(self, progress: Progress) -> None:
        """Save a checkpoint, then delete those no rule keeps.

        Raises CheckpointError when the disk refuses; the earlier checkpoints stay whole.
        """
        tensors = {"w": progress.w} | {f"server.{k}": v for k, v in progress.server.items()}
        for version, sent in progress.history.items():  # copies: versions may share what has not changed
            tensors |= {f"history.{version}.{k}": v.clone() for k, v in sent.items()}
        tensors |= {f"selection.{k}": v.clone() for k, v in progress.selection.items()}
        content = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
        numbers = {k: v for k, v in asdict(_without_tensors(progress)).items() if k not in _TENSORS}
        numbers["sha256"] = hashlib.sha256(content).hexdigest()
        path = self._path(progress.round)
        try:
            if path.exists():  # a damaged one that resume passed over
                shutil.rmtree(path)
            with atomic_folder(path) as folder:
                (folder / "state.safetensors").write_bytes(content)
                (folder / "state.json").write_text(json.dumps(numbers, indent=1))
        except OSError as error:
            rounds = self.rounds()
            raise CheckpointError(
                f"the checkpoint of round {progress.round} could not be saved: {error.strerror}",
                where=str(self._folder),
                why=f"the newest whole checkpoint is of round {rounds[-1]}" if rounds else None,
                fix="make room and run `fedloom resume`",
            ) from error
        self._prune(progress)

    def load(self, round: int) -> Progress:
        """The state after a round.

        Raises NoCheckpoint when there is none of that round, CheckpointError when it is damaged.
        """
        path = self._path(round)
        if not path.exists():
            have = ", ".join(map(str, self.rounds())) or "none"
            raise NoCheckpoint(
                f"there is no checkpoint of round {round}", where=str(self._folder), why=f"there are: {have}"
            )
        try:
            content = (path / "state.safetensors").read_bytes()
            numbers: dict[str, Any] = json.loads((path / "state.json").read_text())
            if hashlib.sha256(content).hexdigest() != numbers.pop("sha256"):
                raise ValueError("the digest of state.safetensors does not match")
            tensors = safetensors.torch.load(content)
            server, selection = (
                {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}
                for part in ("server.", "selection.")
            )
            return Progress(w=tensors["w"], server=server, history=_history(tensors), selection=selection, **numbers)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise CheckpointError(
                f"the checkpoint of round {round} is damaged",
                where=str(path),
                why=str(error),
                fix="delete that folder to go on from the one before",
            ) from error

    def _prune(self, progress: Progress) -> None:
        rounds = [r for r in self.rounds() if r <= progress.round]
        kept = set(rounds[-self._keep.keep_last :])
        if self._keep.keep_best and progress.best_round is not None:
            kept.add(progress.best_round)
        if self._keep.keep_every:
            kept |= {r for r in rounds if r % self._keep.keep_every == 0}
        for round in set(rounds) - kept:
            doomed = self._folder / f".round-{round:06d}.tmp"  # renamed first: a half-deleted checkpoint is never seen
            self._path(round).rename(doomed)
            shutil.rmtree(doomed)

    def _path(self, round: int) -> Path:
        return self._folder / f"round-{round:06d}"


def _without_tensors(progress: Progress) -> Progress:
    plain = Progress(**vars(progress))
    plain.w, plain.server, plain.history, plain.selection = None, {}, {}, {}  # type: ignore[assignment]
    return plain


def _history(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    history: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("history."):
            _, version, name = key.split(".", 2)
            history.setdefault(int(version), {})[name] = value
    return history
