"""FwdLLM (Xu et al. 2024), as its released code has it.

    client k   one batch;  s_ki ~ g_k . v_ki along N_k directions of its own;   G_k = sum_i s_ki v_ki
    server     w <- w - lr sum G_k / N,   over all attempts and clients, unweighted; N counts their directions
    pacing     variance = 2 / N^2 sum s^2 <= threshold, else the same clients and batches are asked for more directions

FedSGD at the granularity of batches: a round is one batch a client and one answer. One that leaves the variance too high changes
nothing; what it found is kept, and the next round asks the same cohort, with the same batches at the same w, along fresh
directions, until the variance is low or `max_retries` is reached. The released code measures the variance of one tensor; in
many dimensions it is this sum of the derivatives' squares, which needs no tensor (`vector/pacing.py`). lr is `local.lr`.

With `perturbation_sampling` every other accepted step draws ten times as many directions and takes those nearest to the last
gradient (`guidance: top_cosine`, biased: see `vector/directions.py`), which is sent beside w. That code takes central
differences with h 0.01, one direction a client, a threshold of 0.1 (DistilBERT) or 0.2 (BERT), 100 clients a round, lr 0.01.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.directional import ALONE, estimated, one_for_all, plain_steps

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group
    from fedloom.vector.layout import Layout

__all__ = ["FwdLLM"]

_SUM, _TALLY, _REFERENCE, _SQUARES = "fwdllm.sum", "fwdllm.tally", "fwdllm.reference", "fwdllm.squares"


class FwdLLM(Algorithm):
    """Forward gradients of single batches, drawn until their variance is low."""

    title: ClassVar[str] = "Forward gradients, paced by their variance"
    paper: ClassVar[str] = (
        "Xu et al. 2024, FwdLLM: Efficient Federated Finetuning of Large Language Models with Perturbed Inferences, "
        "arXiv:2308.13894"
    )
    equation: ClassVar[str] = "as its released code has it"
    family: ClassVar[str] = "backprop-free"
    cost: ClassVar[Cost] = Cost(
        up="1x and a number",
        down="2x",
        compute="2 forward passes of a batch for each direction, instead of the local steps",
    )
    roles: ClassVar[frozenset[str]] = ALONE - {"upload"} | {"server step"}
    unweighted: ClassVar[frozenset[str]] = frozenset({"delta", _SQUARES})
    uploads_derived: ClassVar[bool] = True
    signature: ClassVar[Mapping[str, Any]] = {
        "local.steps": 1,
        "algorithm.var_threshold": 2.0,
        "local.lr": 0.02,
        "local.gradient": {"kind": "central", "h": 0.01, "directions": 20, "guidance": "top_cosine"},
    }

    var_control: bool = Field(
        True, description="Ask again until the variance is low; else one answer a batch is taken."
    )
    var_threshold: float = Field(
        0.1, gt=0, description="The highest variance accepted; that of the released code is 0.1 or 0.2, by the model."
    )
    max_retries: int = Field(10, ge=1, description="How often the same batches are asked for again at most.")
    perturbation_sampling: bool = Field(
        True, description="Every other accepted step, take the directions nearest to the last gradient."
    )

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "FwdLLM's clients differentiate one batch along random directions, and the server asks for more"
        guidance = "top_cosine" if self.perturbation_sampling else "none"
        yield from estimated(
            experiment, why, ("central", "jvp", "forward"), pacing="fixed", shared=False, guidance=guidance
        )
        yield from plain_steps(experiment, "FwdLLM's clients take one plain step a round", "steps", "epochs")
        yield from one_for_all(experiment, "FwdLLM adds up the directions of several rounds")

    def server_state(self, w: Tensor, layout: Layout) -> State:
        state = {
            _SUM: w.new_zeros(w.shape),
            _TALLY: w.new_zeros(3),
        }  # the round that first asked for these batches, clients, sum of s^2
        return state | {_REFERENCE: w.new_zeros(w.shape)} if self.perturbation_sampling else state

    def asks(self, server: State, round: int) -> int:
        return int(server[_TALLY][0]) or round

    def guides(self, step: Tensor, server: State) -> Tensor:
        return server[_REFERENCE].clone()

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {"delta": (layout.n,), _SQUARES: (1,)}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        squares = [sum(float(s.square().sum()) for s in member.derivatives) for member in group.members]
        return {"delta": delta, _SQUARES: w.new_tensor(squares).unsqueeze(1)}, {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        assert round.experiment is not None and isinstance(round.clients, int)
        total = server[_SUM] + round.clients * aggregate["delta"]
        first, clients, squares = (float(x) for x in server[_TALLY])
        first, clients = first or round.number, clients + round.clients
        squares += round.clients * float(aggregate[_SQUARES])
        directions = clients * round.experiment.local.gradient.directions  # type: ignore[union-attr]
        high = 2 * squares / directions**2 > self.var_threshold
        if self.var_control and high and round.number - first < self.max_retries:
            return w.new_zeros(w.shape), {**server, _SUM: total, _TALLY: w.new_tensor([first, clients, squares])}
        step = total / clients
        state = {**server, _SUM: total.new_zeros(w.shape), _TALLY: w.new_zeros(3)}
        if self.perturbation_sampling:  # of a step that was guided itself, nothing is kept
            state[_REFERENCE] = server[_REFERENCE].new_zeros(w.shape) if server[_REFERENCE].any() else step
        return step, state
