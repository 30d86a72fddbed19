"""The parts of an algorithm, in the order data meets them, each with FedAvg's answer.

A method is a file in this folder: its paper and formula on top, then only the parts in which it differs. Its options are its
annotated fields, typed and strict, set by `algorithm: {name: ..., option: value}`. Parts of several methods go together where the
maths allows: `algorithm: {name: fedprox, mu: 0.1, with: fedadam}`.

n is the length of the trainable vector, K the clients of a group; what a client keeps is a row of `[K, ...]` tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fedloom.aggregation.mean import Mean
    from fedloom.config.layers import LayerSelection
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group, Rule
    from fedloom.vector.layout import Layout

    State = dict[str, Tensor]
    Samples = NDArray[np.float64]
    Aggregate = Mapping[str, Tensor]

__all__ = ["Algorithm", "Cost", "Round"]


class Round(NamedTuple):
    """What the server knows of a round when it applies it."""

    number: int
    clients: int | Tensor
    """Clients whose updates came back: |S|; where clients divide the layers, how many trained each entry, `[n]`."""
    total: int
    """Clients of the federation: N."""
    layout: Layout
    staleness: float = 0.0
    """Versions the server made while these clients were under way, on average; 0 where it waits for all."""
    start: Tensor | None = None
    """The older version of the server's vector that they all started from; None where it is the present one, or not one."""
    experiment: Experiment | None = None
    """The experiment, where a method's step follows from its settings."""
    lr: float = 1.0
    """The clients' learning rate in this round."""
    trained: Tensor | None = None
    """The entries, `[n]`, of the layers that any client trained; None for all."""
    gradient: Tensor | None = None
    """`[n]`: the server's own gradient at the vector the clients started from, where it scores layers with rows of its own."""


class Cost(NamedTuple):
    """What a method costs, as a reader would compare it: bytes relative to FedAvg, vectors a client keeps, extra computation."""

    up: str = "1x"
    down: str = "1x"
    state: str = "none"
    compute: str = "none"


class Algorithm(BaseModel):
    """One round's computation; every part is pure: it returns new tensors and leaves its inputs as they were."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    title: ClassVar[str]
    paper: ClassVar[str]
    """Authors, year, title."""
    equation: ClassVar[str] = ""
    """Where in the paper the formula stands."""
    family: ClassVar[str] = "federated optimisation"
    cost: ClassVar[Cost] = Cost()
    signature: ClassVar[Mapping[str, Any]] = {}
    """What `examples/toy/experiment.yaml` is run with to show the paper's main experiment at toy scale: {"local.steps": 20}."""
    roles: ClassVar[frozenset[str]] = frozenset()
    """What only one method of a composition may decide: "server step", "local rule", "factors", "personal", ..."""
    personal: ClassVar[bool] = False
    """Whether a client is judged with a vector of its own rather than the server's."""
    federated: ClassVar[bool] = True
    """Whether anything travels; false for the yardsticks, whose bytes are none."""
    pooled: ClassVar[bool] = False
    """Whether all clients' rows are pooled into one client first."""
    mixed_ranks: ClassVar[bool] = False
    """Whether clients may have LoRA of different ranks."""
    unweighted: ClassVar[frozenset[str]] = frozenset()
    """The uploads of which the server takes the plain mean over clients, whatever they weigh."""

    uploads_derived: ClassVar[bool] = False
    """Whether what the method sends beside the vector follows from the derivatives, so that seeds and scalars are enough."""
    listens: ClassVar[bool] = False
    """Whether every client of the federation hears what a round's are sent, so as not to need the vector when it is asked."""

    moves_all: ClassVar[bool] = False
    """Whether the server also moves layers that nobody trained; else their entries, and its state of them, stay as they are."""

    asynchronous: ClassVar[bool] = False
    """Whether the server goes on when some updates have arrived (`awaits`), rather than all of a cohort's."""

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        """Settings with which the method is not what its paper says: (key, what is wrong, how to mend it)."""
        yield from ()

    def layers(self, experiment: Experiment) -> LayerSelection | None:
        """Which layers train in a round, where the method says that itself; None for what the file says."""
        return None

    def client_state(self, w: Tensor, layout: Layout) -> State:
        """What a client keeps between rounds, as it is before its first round from the server's vector `w`, `[n]`."""
        return {}

    def server_state(self, w: Tensor, layout: Layout) -> State:
        """What the server keeps between rounds, as it is before the first."""
        return {}

    def private(self, layout: Layout) -> Tensor | None:
        """The entries, `[n]`, that never leave a client and that it keeps between rounds; None for none."""
        return None

    def trains(self, layout: Layout, round: int) -> Tensor | None:
        """The entries, `[n]`, that local steps of this round move, and that travel back unless private; None for all."""
        return None

    def receives(self, layout: Layout, round: int) -> Tensor | None:
        """The entries, `[n]`, that are sent to a client; None for all that are not private."""
        private = self.private(layout)
        return None if private is None else ~private

    def broadcast(self, w: Tensor, server: State) -> State:
        """What goes to the clients beside the vector; they find it in `group.server`."""
        return {}

    def train(self, group: Group, rule: Rule) -> Tensor:
        """`[K, n]`: where the clients end that start from `group.anchor`; `rule` is `gradient`, of all methods composed."""
        return group.train(group.anchor, rule)

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        """`[K, n]`: the direction of a local step, from the gradient at the present rows `w`."""
        return g

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        """The shapes of what one client's `upload` holds: what else a message holds is refused."""
        return {"delta": (layout.n,)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        """What leaves the clients and their new state, a row a client; `w` are the trained rows, delta = w - anchor."""
        return {"delta": delta}, {}

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        """The samples whose gradients a client computes in a round (a forward pass alone is a third), from which follows how long
        its device takes: `plain` in plain local steps, while it holds `rows`, and a step takes `step`; each `[N]`.
        """
        return plain

    def judged(self, group: Group) -> Tensor:
        """`[K, n]`: the vectors with which clients are judged, where the method is personal."""
        return group.anchor

    def combine(self, layout: Layout) -> Mean:
        """The fold over updates."""
        from fedloom.aggregation.mean import Mean

        return Mean(self.unweighted)

    def awaits(self) -> int:
        """With how many arrived updates an asynchronous server makes its next version."""
        return 1

    def discount(self, staleness: int) -> float:
        """By how much an update shrinks whose client started this many versions ago."""
        return 1.0

    def guides(self, step: Tensor, server: State) -> Tensor:
        """What the next round's directions are guided by, `[n]`, where they are; zero for nothing."""
        return step

    def asks(self, server: State, round: int) -> int:
        """The round whose cohort and batches this one has: an earlier one where the server asks the same once more."""
        return round

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        """What the server adds to its vector `w`, `[n]`, and its next state, from the combined updates."""
        return aggregate["delta"], server
