"""Dropout from streams of each client's own, so that grouping and order of execution do not change what is dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedloom.vector.streams import stream_seed

__all__ = ["Block", "Dropouts"]


@dataclass(frozen=True)
class Block:
    """One client's part of a joined batch: its stream (seed, round, client id, step), its own rows and length before padding."""

    key: tuple[int, int, str, int]
    rows: int
    length: int


class Dropouts:
    """The dropout modules of a model that act in training: the adapter's, and the base model's where asked for."""

    def __init__(self, model: nn.Module, base_dropout: bool) -> None:
        self._modules = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Dropout) and module.p > 0 and (base_dropout or "lora_dropout" in name)
        ]

    @contextmanager
    def active(self, blocks: Sequence[Block]) -> Iterator[None]:
        """Drop while the block lasts; a batch holds one equal, padded block of rows per client, in this order.

        The mask depends on (seed, round, client, step, module) alone: recomputed layers draw it again, and a client's own
        rows and positions get the same numbers whatever they are padded to.
        """
        for name, module in self._modules:
            module.forward = partial(_drop, name, module.p, blocks)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for _, module in self._modules:
                del module.forward


def _drop(name: str, p: float, blocks: Sequence[Block], x: Tensor) -> Tensor:
    """x * mask / (1 - p), the mask Bernoulli(1 - p)."""
    rows = x.shape[0] // len(blocks)
    keep = torch.ones(x.shape, dtype=x.dtype)
    for k, block in enumerate(blocks):
        generator = torch.Generator().manual_seed(stream_seed(block.key[0], "dropout", *block.key[1:], name))
        inner = list(x.shape[1:])
        if len(inner) > 1:
            inner[0] = min(block.length, inner[0])
        own = torch.rand([block.rows, *inner], generator=generator) >= p
        region = keep[k * rows : k * rows + block.rows]
        (region[:, : inner[0]] if len(inner) > 1 else region).copy_(own)
    return x * (keep / (1.0 - p)).to(x.device)
