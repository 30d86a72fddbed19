"""The index of selectors: the one place that knows their names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedloom.config.reference import is_reference, load_attribute
from fedloom.errors import UsageError, nearest
from fedloom.selection.base import Selector

__all__ = ["SELECTORS", "Selector", "build", "catalogue", "resolve"]

SELECTORS: Mapping[str, str] = {
    name: f"fedloom.selection.{place}"
    for name, place in {
        "uniform": "uniform:Uniform",
        "size": "by_size:BySize",
        "availability": "by_availability:ByAvailability",
        "round_robin": "round_robin:RoundRobin",
        "oort": "oort:Oort",
        "pyramidfl": "pyramidfl:PyramidFL",
        "refl": "refl:REFL",
        "power_of_choice": "power_of_choice:PowerOfChoice",
        "fedcs": "fedcs:FedCS",
    }.items()
}


def resolve(name: str, base: Path) -> type[Selector]:
    """The class of a selector, by name or the user's own `module:attribute`."""
    if name not in SELECTORS and not is_reference(name):
        raise UsageError(f"there is no selector {name!r}", fix=nearest(name, list(SELECTORS)))
    found = load_attribute(SELECTORS.get(name, name), base)
    if not (isinstance(found, type) and issubclass(found, Selector)):
        raise UsageError(f"{name!r} is no selector", fix="derive the class from fedloom.Selector")
    return found


def build(spec: Mapping[str, Any], base: Path) -> Selector:
    """The selector of an experiment: `{name: ..., options}`."""
    return resolve(spec["name"], base)(**{key: value for key, value in spec.items() if key != "name"})


def catalogue() -> list[dict[str, Any]]:
    """What the files say of the selectors in the tree, in the index's order."""
    found = [(name, resolve(name, Path())) for name in SELECTORS]
    return [
        {
            "name": name,
            "title": own.title,
            "paper": own.paper,
            "equation": own.equation,
            "needs": "devices" if own.needs_devices else "",
            "options": list(own.model_fields),
        }
        for name, own in found
    ]
