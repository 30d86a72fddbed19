"""What the methods on LoRA's factors share: the adapter they need, and what goes with them.

The model is W + s B A with s = alpha / r; client k ends its round with B_k and A_k, and p_k is its share of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from fedloom.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.aggregation.mean import Mean
    from fedloom.algorithms.base import State
    from fedloom.config.schema import Experiment
    from fedloom.vector.layout import Layout

__all__ = ["REWRITES", "LoRARule", "ProductRule"]

REWRITES = frozenset({"factors", "server step", "normalisation", "order of arrival"})
"""The roles of a rule that sets the factors anew from every client's own, as they came back from this round."""


class LoRARule(Algorithm):
    """A method that knows A from B."""

    family: ClassVar[str] = "LoRA factors"
    roles: ClassVar[frozenset[str]] = frozenset({"factors"})
    refactors: ClassVar[bool] = False
    """Whether the server writes other factors than the mean, of which an optimizer's averages would know nothing."""

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        if experiment.adapter.kind != "lora":
            what = f"{self.title} works on LoRA's factors, and the adapter is {experiment.adapter.kind}"
            yield "adapter.kind", what, "Set kind: lora, or choose another algorithm"
        if self.refactors and experiment.local.optimizer_state == "keep":
            what = "the server writes the factors anew each round, so a kept optimizer's averages belong to other ones"
            yield "local.optimizer_state", what, "Set optimizer_state: reset"

    def server_state(self, w: Tensor, layout: Layout) -> State:
        from fedloom.vector.lora import required_pairs

        required_pairs(layout)
        return {}


class ProductRule(LoRARule):
    """A method whose server needs every client's own A_k and B_k, for the mean of their products."""

    roles: ClassVar[frozenset[str]] = REWRITES

    def combine(self, layout: Layout) -> Mean:
        from fedloom.aggregation.factors import Factors

        return Factors(layout)
