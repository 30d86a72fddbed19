"""What methods demand of the local steps: the settings that their formula leaves no room for, refused with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedloom.config.schema import Local

__all__ = ["PLAIN_SGD", "without"]

PLAIN_SGD = ("optimizer", "momentum", "weight_decay", "clip", "schedule")
"""The settings under which a local step is not w - lr g with one lr and the bare gradient."""


def without(local: Local, keys: tuple[str, ...], why: str, other: str = "") -> Iterator[tuple[str, str, str]]:
    """A mistake for each of these keys that is set: (key, why, how to mend it); `other` is another way to mend it."""
    given = {
        "optimizer": local.optimizer != "sgd",
        "momentum": local.momentum > 0,
        "nesterov": local.nesterov,
        "weight_decay": local.weight_decay > 0,
        "clip": local.clip is not None,
        "schedule": local.schedule.kind != "constant" or local.schedule.warmup > 0,
        "steps": (local.steps or 1) > 1,
        "epochs": (local.epochs or 1) > 1,
        "accumulate": local.accumulate > 1,
        "optimizer_state": local.optimizer_state == "keep",
    }
    fixes = {"optimizer": "Set optimizer: sgd", "steps": "Set steps: 1", "epochs": "Set epochs: 1"}
    for key in keys:
        if given[key]:
            yield f"local.{key}", why, fixes.get(key, "Take it out") + (f", or {other}" if other else "")
