"""What the methods without backpropagation share: their demands, and steps that are sums of directions made again from keys.

    step = sum_t sum_k c_tk v_tk

c_tk = -lr s_tk / N is what a client multiplies its direction k of step t with; s is the derivative along it, N their number. Who
knows the keys and c knows the step: directions are the same bits anywhere (`vector/directions.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fedloom.algorithms.demands import PLAIN_SGD, without

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.algorithms.base import Round
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group

__all__ = [
    "ALONE",
    "SENT_ITSELF",
    "coefficients",
    "coefficients_shape",
    "common_step",
    "estimated",
    "one_for_all",
    "plain_steps",
]

ALL_KINDS = ("jvp", "central", "forward")
SENT_ITSELF = {"guidance": "none", "pacing": "fixed", "upload": "delta"}
"""What of `local.gradient` a method wants that sends its derivatives in a way of its own."""
ALONE = frozenset(
    {"local steps", "upload", "gradient correction", "order of arrival", "factors", "what clients are judged with",
     "normalisation", "weighting"}
)  # fmt: skip
"""What a method decides whose clients send numbers of one plain step: only how the server steps is left to another."""


def estimated(
    experiment: Experiment, why: str, kinds: tuple[str, ...] = ALL_KINDS, **wanted: Any
) -> Iterator[tuple[str, str, str]]:
    """A mistake for each setting of `local.gradient` that is not as wanted: (key, why, how to mend it)."""
    gradient = experiment.local.gradient
    if gradient.kind not in kinds:
        yield "local.gradient", why, f"Set gradient: {{kind: {kinds[0]}}}"
        return
    for key, value in wanted.items():
        given = getattr(gradient, key)
        given = getattr(given, "kind", given)
        if given != value:
            yield f"local.gradient.{key}", why, f"Set {key}: {str(value).lower()}"


def plain_steps(experiment: Experiment, why: str, *keys: str) -> Iterator[tuple[str, str, str]]:
    """A mistake for each setting under which a local step is not w - lr g_hat."""
    yield from without(experiment.local, (*PLAIN_SGD, "optimizer_state", *keys), why)


def one_for_all(experiment: Experiment, why: str) -> Iterator[tuple[str, str, str]]:
    """A mistake where what is learnt differs between the clients of a round, or from round to round."""
    if experiment.layers.kind not in ("all", "given"):
        yield "layers", why, "Set layers: all, or name them: {kind: given, layers: [...]}"


def coefficients(group: Group) -> Tensor:
    """`[K, T, N]`: c of every step and direction, of members that all took T steps along N directions."""
    import torch

    s = torch.stack([torch.stack(member.derivatives) for member in group.members])
    return s.to(group.anchor.device) * (-group.lr / s.shape[-1])


def coefficients_shape(experiment: Experiment) -> tuple[int, int]:
    """(T, N): the shape of one client's `coefficients`."""
    local = experiment.local
    assert local.steps is not None
    return local.steps, local.gradient.directions  # type: ignore[union-attr]


def common_step(w: Tensor, c: Tensor, round: Round) -> Tensor:
    """`[n]`: the step of the directions that a whole cohort took, from the means of their coefficients `[T, N]`."""
    from fedloom.vector.directions import DirectionStream, accumulate

    assert round.experiment is not None
    kind, step = round.experiment.local.gradient.distribution, w.new_zeros(w.shape)  # type: ignore[union-attr]
    for t, own in enumerate(c):
        stream = DirectionStream(round.experiment.seed, "directions", round.number, "cohort", t)
        accumulate(round.layout, stream.keys(len(own)), own, kind, step, only=round.trained)
    return step
