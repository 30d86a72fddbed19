"""Curves for TensorBoard: the numbers of every round's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Curves"]


class Curves:
    """A listener that writes scalars; after a resume, later points of the killed run are hidden."""

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=start)

    def __call__(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["round"])  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()  # type: ignore[no-untyped-call]
