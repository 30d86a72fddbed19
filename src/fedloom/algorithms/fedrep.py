"""FedRep (Collins et al. 2021, algorithm 1).

    for s = 1 .. tau:  h_k <- h_k - alpha grad_h f_k(h_k, phi)            the client's own head, the body fixed
    then               phi_k <- phi - alpha grad_phi f_k(h_k, phi)        the body, the head fixed
    server             phi <- mean_k phi_k

phi is the body, which all share; h_k the head of client k, which never leaves it. The paper states one step of the body; its
experiments take epochs of them, as `local.steps` or `local.epochs` say here. Its mean counts clients alike
(`federation.weighting: uniform`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.patterns import HEAD, Patterns

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Samples
    from fedloom.local.group import Group, Rule
    from fedloom.vector.layout import Layout

__all__ = ["FedRep"]


class FedRep(Algorithm):
    """First the client's own head, then the shared body."""

    title: ClassVar[str] = "Shared representation, own heads"
    paper: ClassVar[str] = (
        "Collins et al. 2021, Exploiting Shared Representations for Personalized Federated Learning, arXiv:2102.07078"
    )
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "personalisation"
    cost: ClassVar[Cost] = Cost(
        up="less: the body alone", down="less: the body alone", state="its head", compute="`head_steps` more steps"
    )
    roles: ClassVar[frozenset[str]] = frozenset({"local steps"})
    personal: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {
        "algorithm.head_steps": 10,
        "local.steps": 10,
        "evaluation.clients_every": 1,
    }

    patterns: Patterns = Field(
        [HEAD],
        min_length=1,
        description="Regular expressions: slices whose name holds one are the client's own head. The model's head when left "
        "out.",
    )
    head_steps: int = Field(
        10,
        ge=1,
        description="Local steps on the head alone, before those on the body (tau); the paper takes 10 epochs.",
    )

    def private(self, layout: Layout) -> Tensor | None:
        return layout.matching(self.patterns)

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        return plain + self.head_steps * step / 3  # the head lies above all layers: hardly a way back

    def train(self, group: Group, rule: Rule) -> Tensor:
        head = group.layout.matching(self.patterns).to(group.anchor.device)
        trains = True if group.trains is None else group.trains
        rows = group.train(group.anchor, lambda g, w, _: g, only=head & trains, steps=self.head_steps, optimizer="head")
        return group.train(rows, rule, only=~head & trains)
