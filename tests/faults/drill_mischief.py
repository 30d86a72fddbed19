"""What can go wrong with a message, or with a disk or a clock, installed in one process of a drill."""

from __future__ import annotations

from typing import Any

__all__: list[str] = []
