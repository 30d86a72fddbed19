"""The index of algorithms: the one place that knows their names. It imports no tensor library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.algorithms.base import Algorithm
from fedloom.config.reference import is_reference, load_attribute
from fedloom.errors import UsageError, nearest

__all__ = ["ALGORITHMS", "Algorithm", "catalogue", "resolve"]

ALGORITHMS: Mapping[str, str] = {
    "fedavg": "fedloom.algorithms.fedavg:FedAvg",
    "local": "fedloom.algorithms.local:Local",
    "central": "fedloom.algorithms.central:Central",
}


def resolve(name: str, base: Path) -> type[Algorithm]:
    """The class of an algorithm, by name or the user's own `module:attribute`."""
    if name not in ALGORITHMS and not is_reference(name):
        raise UsageError(f"there is no algorithm {name!r}", fix=nearest(name, list(ALGORITHMS)))
    found = load_attribute(ALGORITHMS.get(name, name), base)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UsageError(f"{name!r} is no algorithm", fix="derive the class from fedloom.Algorithm")
    return found


def catalogue() -> list[dict[str, Any]]:
    """Name, title and paper of every algorithm in the tree."""
    classes = {name: resolve(name, Path.cwd()) for name in ALGORITHMS}
    return [{"name": name, "title": c.title, "paper": c.paper} for name, c in classes.items()]
