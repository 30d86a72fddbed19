"""Curves for TensorBoard: the numbers of every round's record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["Curves"]


class Curves:
    """A listener that writes scalars; after a resume, the later points of the killed run are hidden."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def __call__(self, record: dict[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # seconds to import

            self._writer = SummaryWriter(str(self._folder), purge_step=record["round"])
        for name, value in record.items():
            if name != "round" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, record["round"])
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the file."""
        if self._writer is not None:
            self._writer.close()
