"""What clients keep between rounds, on disk, keyed by client id and versioned by round.

A state saved in round r is the file `.../r.safetensors`; reading "as of round r" takes the newest not younger than r. A run that is
resumed from round r therefore sees exactly what it saw then, without copies at every checkpoint.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from torch import Tensor

from fedloom.errors import CheckpointError
from fedloom.files import write_atomic

__all__ = ["ClientStore"]


class ClientStore:
    """Lazily loaded rows of client state; nothing is held in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keep_from = 0
        """The oldest round a run may still be resumed from: older versions than it needs are deleted on saving."""

    def load(self, client: str, before: int) -> dict[str, Tensor] | None:
        """The client's state as it was before round `before`; None if it had none.

        Raises CheckpointError when it is damaged.
        """
        versions = [v for v in self._versions(client) if v < before]
        if not versions:
            return None
        path = self._path(client, versions[-1])
        try:
            state: dict[str, Tensor] = safetensors.torch.load_file(path)
            return state
        except (OSError, safetensors.SafetensorError) as error:
            what = f"the state of client {client!r} after round {versions[-1]} is damaged"
            raise CheckpointError(what, where=str(path), why=str(error), fix="begin a new run") from error

    def save(self, client: str, round: int, state: dict[str, Tensor]) -> None:
        """Keep a client's state after a round.

        Raises CheckpointError when the disk refuses: that is no failure of the client, which a policy might drop.
        """
        path = self._path(client, round)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, safetensors.torch.save({k: v.contiguous().cpu() for k, v in state.items()}))
        except OSError as error:
            what = f"the state of client {client!r} cannot be saved: {error.strerror}"
            fix = "make room and run `fedloom resume`"
            raise CheckpointError(what, where=str(self.folder), fix=fix) from error
        older = [v for v in self._versions(client) if v <= self.keep_from]
        for version in older[:-1]:
            self._path(client, version).unlink()

    def discard(self, client: str, round: int) -> None:
        """Forget the state that a client kept after a round, if there is one: that round counts as one it took no part in."""
        self._path(client, round).unlink(missing_ok=True)

    def _versions(self, client: str) -> list[int]:
        return sorted(int(p.stem) for p in self._path(client, 0).parent.glob("[0-9]*.safetensors"))

    def _path(self, client: str, round: int) -> Path:
        name = hashlib.sha256(client.encode()).hexdigest()[:32]  # ids are free text: never a path
        return self.folder / name[:2] / name[2:] / f"{round:06d}.safetensors"
