"""Several methods as one: what each states is done one after the other, in the order given.

States and uploads are united; the gradient, the update and the server's step pass through every method. What only one of them may
decide (`roles`) is checked when the experiment is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from fedloom.algorithms.base import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from fedloom.aggregation.mean import Mean
    from fedloom.algorithms.base import Aggregate, Round, Samples, State
    from fedloom.config.layers import LayerSelection
    from fedloom.config.schema import Experiment
    from fedloom.local.group import Group, Rule
    from fedloom.vector.layout import Layout

__all__ = ["Composition", "clash", "compose"]


def clash(methods: Sequence[type[Algorithm]]) -> str | None:
    """Why these methods cannot go together, or None: no two may decide the same thing."""
    for i, one in enumerate(methods):
        for other in methods[:i]:
            alone = next((m for m in (one, other) if "everything" in m.roles), None)
            if alone:
                return f"{alone.title} goes with no other method"
            if both := sorted(one.roles & other.roles):
                return f"{other.title} and {one.title} both decide the {both[0]}"
    return None


def compose(methods: Sequence[Algorithm]) -> Algorithm:
    """One algorithm of these."""
    if len(methods) == 1:
        return methods[0]
    facts = {
        "title": " with ".join(m.title for m in methods),
        "paper": "; ".join(m.paper for m in methods),
        "roles": frozenset().union(*(m.roles for m in methods)),
        "personal": any(m.personal for m in methods),
        "asynchronous": any(m.asynchronous for m in methods),
        "moves_all": any(m.moves_all for m in methods),
        "uploads_derived": all(m.uploads_derived or type(m).upload is Algorithm.upload for m in methods),
        "listens": any(m.listens for m in methods),
        "mixed_ranks": any(m.mixed_ranks for m in methods),
        "unweighted": frozenset().union(*(m.unweighted for m in methods)),
    }
    kind: type[Composition] = type("Composition", (Composition,), facts | {"__module__": __name__})
    return kind(methods=tuple(methods))


class Composition(Algorithm):
    """The parts of several methods."""

    methods: tuple[Algorithm, ...]

    def check(self, experiment: Experiment) -> Iterator[tuple[str, str, str]]:
        for method in self.methods:
            yield from method.check(experiment)

    def layers(self, experiment: Experiment) -> LayerSelection | None:
        return next((own for m in self.methods if (own := m.layers(experiment)) is not None), None)

    def client_state(self, w: Tensor, layout: Layout) -> State:
        return _united(m.client_state(w, layout) for m in self.methods)

    def server_state(self, w: Tensor, layout: Layout) -> State:
        return _united(m.server_state(w, layout) for m in self.methods)

    def private(self, layout: Layout) -> Tensor | None:
        return _masks([m.private(layout) for m in self.methods], lambda a, b: a | b)

    def trains(self, layout: Layout, round: int) -> Tensor | None:
        return _masks([m.trains(layout, round) for m in self.methods], lambda a, b: a & b)

    def receives(self, layout: Layout, round: int) -> Tensor | None:
        return _masks([m.receives(layout, round) for m in self.methods], lambda a, b: a & b)

    def broadcast(self, w: Tensor, server: State) -> State:
        return _united(m.broadcast(w, server) for m in self.methods)

    def train(self, group: Group, rule: Rule) -> Tensor:
        return self._owner("train").train(group, rule)

    def gradient(self, g: Tensor, w: Tensor, group: Group) -> Tensor:
        for method in self.methods:
            g = method.gradient(g, w, group)
        return g

    def sends(self, layout: Layout, experiment: Experiment) -> Mapping[str, tuple[int, ...]]:
        sent = [method.sends(layout, experiment) for method in self.methods]
        instead = any("delta" not in own for own in sent)
        return {name: shape for own in sent for name, shape in own.items() if name != "delta" or not instead}

    def upload(self, delta: Tensor, w: Tensor, group: Group) -> tuple[State, State]:
        uploads: State = {}
        kept: State = {}
        instead = False  # whether a method sends something in place of the vector
        for method in self.methods:
            sent, own = method.upload(delta, w, group)
            delta = sent.get("delta", delta)
            uploads, kept = uploads | sent, kept | own
            instead = instead or "delta" not in sent
        return {name: value for name, value in uploads.items() if name != "delta" or not instead}, kept

    def work(self, plain: Samples, rows: Samples, step: Samples) -> Samples:
        for method in self.methods:
            plain = method.work(plain, rows, step)
        return plain

    def judged(self, group: Group) -> Tensor:
        return self._owner("judged").judged(group)

    def combine(self, layout: Layout) -> Mean:
        owner = self._owner("combine")
        return owner.combine(layout) if type(owner).combine is not Algorithm.combine else super().combine(layout)

    def awaits(self) -> int:
        return self._owner("awaits").awaits()

    def discount(self, staleness: int) -> float:
        return self._owner("discount").discount(staleness)

    def guides(self, step: Tensor, server: State) -> Tensor:
        return self._owner("guides").guides(step, server)

    def asks(self, server: State, round: int) -> int:
        return self._owner("asks").asks(server, round)

    def apply(self, w: Tensor, aggregate: Aggregate, server: State, round: Round) -> tuple[Tensor, State]:
        def place(method: Algorithm) -> int:  # what is made of another message comes first, the server's optimizer last
            return ("server step" in method.roles) - ("upload" in method.roles)

        for method in sorted(self.methods, key=place):
            step, server = method.apply(w, aggregate, server, round)
            aggregate = {**aggregate, "delta": step}
        return aggregate["delta"], server

    def _owner(self, part: str) -> Algorithm:
        """The method that states a part of its own; roles see to it that there is at most one."""
        stated = [m for m in self.methods if getattr(type(m), part) is not getattr(Algorithm, part)]
        return stated[0] if stated else self.methods[0]


def _united(states: Iterator[State]) -> State:
    return reduce(lambda a, b: a | b, states, {})


def _masks(masks: Sequence[Tensor | None], join: Callable[[Any, Any], Any]) -> Tensor | None:
    stated = [mask for mask in masks if mask is not None]
    return reduce(join, stated) if stated else None
