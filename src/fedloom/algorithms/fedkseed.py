"""FedKSeed and FedKSeed-Pro (Qin et al. 2024, algorithm 1).

    client, each step   j ~ p over the K candidate seeds;  s = (f(w + h v_j) - f(w - h v_j)) / 2h
                        w <- w - lr s v_j;   c_j <- c_j - lr s
    server              c <- c + sum_k p_k c_k / sum_k p_k
    anyone              w = w_0 + sum_j c_j v_j
    pro                 p = softmax((a - min a) / (max a - min a)),  a_j the mean of |s| over all draws of seed j so far

The directions v_j are the same in every round, so K numbers c hold all that was ever learnt, whatever the model: they are all that
travels, both ways, and a client makes w of them and its base (`rebuild`). With `pro` it also sends what it saw of each seed, and
is sent p; else p is uniform. The released code takes 200 steps of batches of one, h 5e-4 and lr 3e-7 for all parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedloom.algorithms.base import Algorithm, Cost
from fedloom.algorithms.directional import SENT_ITSELF, estimated, one_for_all, plain_steps

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Aggregate, Round, State
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group, Member, Rule
    from fedloom.vector.directions import DirectionStream
    from fedloom.vector.layout import Layout

__all__ = ["FedKSeed"]

_C, _P, _SEEN = "fedkseed.scalars", "fedkseed.probabilities", "fedkseed.seen"


class FedKSeed(Algorithm):
    """All steps ever taken are along K directions, so K numbers are all that is sent."""

    title: ClassVar[str] = "K candidate seeds"
    paper: ClassVar[str] = (
        "Qin et al. 2024, Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 "
        "Kilobytes, arXiv:2312.06353"
    )
    equation: ClassVar[str] = "algorithm 1"
    family: ClassVar[str] = "backprop-free"
    cost: ClassVar[Cost] = Cost(up="K numbers", down="K numbers", compute="2 forward passes a local step")
    roles: ClassVar[frozenset[str]] = frozenset({"everything"})
    unweighted: ClassVar[frozenset[str]] = frozenset({_SEEN})
    signature: ClassVar[Mapping[str, Any]] = {
        "local.steps": 50, "local.lr": 0.002, "local.gradient": {"kind": "central", "directions": 1},
    }  # fmt: skip

    seeds: int = Field(4096, ge=1, description="K, the candidate seeds; the paper takes 4096, or 1024 with `pro`.")
    pro: bool = Field(False, description="FedKSeed-Pro: draw the seeds more often along which the loss changes more.")

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        why = "a step of FedKSeed is one central difference along the direction of a candidate seed"
        yield from estimated(experiment, why, ("central",), directions=1, shared=False, **SENT_ITSELF)
        yield from plain_steps(experiment, "FedKSeed adds up plain steps of one length")
        yield from one_for_all(experiment, "FedKSeed's directions are the same in every round")

    def server_state(self, w: Tensor, layout: Layout) -> State:
        c = w.new_zeros(self.seeds)
        return {_C: c, _P: c + 1 / self.seeds, _SEEN: w.new_zeros(2, self.seeds)} if self.pro else {_C: c}

    def receives(self, layout: Layout, round: int) -> Tensor | None:
        return layout.mask(lambda _: False)

    def broadcast(self, w: Tensor, server: State) -> State:
        return {name: server[name] for name in (_C, _P) if name in server}

    def train(self, group: Group, rule: Rule) -> Tensor:
        drawn = {member.client: self._drawn(group, member) for member in group.members}
        group.stream = lambda client, step: self.candidate(group.trainer.seed, drawn[client][step])
        return group.train(group.anchor, rule)

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        return {_C: (self.seeds,)} | ({_SEEN: (2, self.seeds)} if self.pro else {})

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        c, seen = w.new_zeros(len(group), self.seeds), w.new_zeros(len(group), 2, self.seeds)
        for k, member in enumerate(group.members):
            for j, s in zip(self._drawn(group, member), map(float, member.derivatives), strict=True):
                c[k, j] -= group.lr * s
                seen[k, :, j] += seen.new_tensor([abs(s), 1.0])
        return {_C: c} | ({_SEEN: seen} if self.pro else {}), {}

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        assert round.experiment is not None
        c, state = aggregate[_C], {**server, _C: server[_C] + aggregate[_C]}
        step = self.rebuild(w.new_zeros(w.shape), c, round.layout, round.experiment, round.trained)
        if self.pro:
            total, count = state[_SEEN] = server[_SEEN] + aggregate[_SEEN]
            a = (total / count).where(count > 0, total.sum() / count.sum())  # of a seed never drawn, the mean of all
            state[_P] = ((a - a.min()) / (a.max() - a.min()).clamp_min(1e-12)).softmax(0)
        return step, state

    def rebuild(self, w0: Tensor, c: Tensor, layout: Layout, of: Experiment, only: Tensor | None = None) -> Tensor:
        """w_0 + sum_j c_j v_j, `[n]`, written into `w0`: no direction is ever held whole."""
        from fedloom.vector.directions import accumulate

        used = c.nonzero().flatten().tolist() or [0]
        keys, gradient = [self.candidate(of.seed, j).keys(1)[0] for j in used], of.local.gradient
        return accumulate(layout, keys, c[used], gradient.distribution, w0, only=only)  # type: ignore[union-attr]

    def candidate(self, seed: int, j: int) -> DirectionStream:
        """The direction of candidate seed j: the first of its stream."""
        from fedloom.vector.directions import DirectionStream

        return DirectionStream(seed, "candidates", 0, j, 0)

    def _drawn(self, group: Group, member: Member) -> list[int]:
        """The candidate of each of a member's steps."""
        from fedloom.vector.streams import stream

        p = group.server[_P].double().cpu().numpy() if self.pro else None
        generator = stream(group.trainer.seed, "candidates", group.round, member.client)
        return generator.choice(self.seeds, len(member.steps), p=p if p is None else p / p.sum()).tolist()  # type: ignore[no-any-return]
