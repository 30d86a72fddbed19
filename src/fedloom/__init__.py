"""fedloom: federated fine-tuning, from one experiment file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedloom.algorithms import Algorithm
    from fedloom.api import Run, load, resume, run
    from fedloom.config.schema import Experiment
    from fedloom.selection import Selector
    from fedloom.tasks.base import Task

__all__ = ["Algorithm", "Experiment", "Run", "Selector", "Task", "load", "resume", "run"]

_HOMES = {
    "Algorithm": "fedloom.algorithms",
    "Experiment": "fedloom.config.schema",
    "Run": "fedloom.api",
    "Selector": "fedloom.selection",
    "Task": "fedloom.tasks.base",
    "load": "fedloom.api",
    "resume": "fedloom.api",
    "run": "fedloom.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import fedloom` and the light verbs stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedloom' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
