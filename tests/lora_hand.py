"""LoRA in numbers small enough for a hand: one map of 2 x 2, rank 1, and a head of one number; and dense products as the oracle."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedloom.algorithms import Algorithm
from fedloom.algorithms.base import Round
from fedloom.vector.layout import Layout
from fedloom.vector.lora import pairs


def layout_of(d_in: int = 2, d_out: int = 2, r: int = 1, layers: int = 1) -> Layout:
    named = []
    for i in range(layers):
        named += [
            (f"l{i}.lora_A.default.weight", torch.zeros(r, d_in)),
            (f"l{i}.lora_B.default.weight", torch.zeros(d_out, r)),
        ]
    return Layout.of([*named, ("head.modules_to_save.default.weight", torch.zeros(1, 1))])


SMALL = layout_of()


def vector(a: Sequence[float], b: Sequence[float], head: float) -> Tensor:
    """A = [[., .]], B = [[.], [.]] and the head, as a vector of SMALL."""
    return torch.tensor([*a, *b, head])


def serve(
    algorithm: Algorithm,
    w: Tensor,
    rows: Tensor,
    weights: Sequence[float],
    layout: Layout = SMALL,
    starts: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The server's next vector and state when clients end at `rows`."""
    fold = algorithm.combine(layout)
    total = fold.empty()
    starts = w.expand(len(rows), -1) if starts is None else starts
    for row, weight, start in zip(rows, weights, starts, strict=True):
        total = fold.add(total, {"delta": row - start}, weight, start)
    facts = Round(1, len(rows), len(rows), layout)
    step, server = algorithm.apply(w, fold.finish(total), algorithm.server_state(w, layout), facts)
    return w + step, server


def dense(w: Tensor, server: Mapping[str, Tensor], layout: Layout, which: str = "residual") -> list[Tensor]:
    """B A and the residual of every map, multiplied out in float64."""
    views, found = layout.views(w.double()), []
    for pair in pairs(layout):
        product = views[pair.b.name] @ views[pair.a.name]
        if f"{which}.U.{pair.name}" in server:
            product = product + server[f"{which}.U.{pair.name}"].double() @ server[f"{which}.V.{pair.name}"].double()
        found.append(product)
    return found


def mean_of_products(rows: Tensor, weights: Sequence[float], layout: Layout) -> list[Tensor]:
    """sum_k p_k B_k A_k of every map, multiplied out in float64."""
    p = torch.tensor(weights, dtype=torch.float64)
    each = [dense(row, {}, layout) for row in rows]
    return [sum(share * own[i] for share, own in zip(p / p.sum(), each, strict=True)) for i in range(len(each[0]))]


def records(federation, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (federation.run_dir.path / name).read_text().splitlines()]
