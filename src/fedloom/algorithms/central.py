"""All data pooled in one place: the yardstick from above.

    w <- w after local steps on every client's rows together.

A round takes as many steps as a whole cohort takes in the federated run (`steps` x clients a round, or `epochs` over all rows),
so that both see the same number of examples.
"""

from __future__ import annotations

from typing import ClassVar

from fedloom.algorithms.base import Algorithm, Cost

__all__ = ["Central"]


class Central(Algorithm):
    """Ordinary fine-tuning, as if privacy were no concern."""

    title: ClassVar[str] = "All data pooled"
    paper: ClassVar[str] = "a yardstick, not a method"
    family: ClassVar[str] = "yardsticks"
    cost: ClassVar[Cost] = Cost(up="none", down="none")
    roles: ClassVar[frozenset[str]] = frozenset({"everything"})
    federated: ClassVar[bool] = False
    pooled: ClassVar[bool] = True
