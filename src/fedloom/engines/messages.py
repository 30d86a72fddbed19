"""A client's update as a message: only the entries that travel, and of those only what the algorithm declares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from fedloom.codec.wire import Buffer, Update, decode
from fedloom.config.layers import Score
from fedloom.local.prepare import Prepared
from fedloom.local.scores import SCORES

__all__ = ["declared", "pack", "read_update", "unpack"]


def pack(update: Mapping[str, Tensor], sent: Tensor | None) -> dict[str, Tensor]:
    """The tensors that travel: of the vectors, only the entries `sent`, `[n]`, where it is given."""
    if sent is None:
        return dict(update)
    return {name: value[sent] if value.shape == sent.shape else value for name, value in update.items()}


def unpack(message: Mapping[str, Tensor], sent: Tensor | None, vectors: Collection[str]) -> dict[str, Tensor]:
    """The tensors as they were before `pack`: these `vectors` whole again, zero where nothing travelled."""
    if sent is None:
        return dict(message)
    return {
        name: torch.zeros(len(sent), dtype=value.dtype).masked_scatter_(sent, value) if name in vectors else value
        for name, value in message.items()
    }


def declared(
    prepared: Prepared, sent: Tensor | None, scored: tuple[Score, Sequence[int]] | None
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The types and shapes of the tensors that a client's message holds, of which only the entries `sent`, `[n]`, travel."""
    layout = prepared.binding.layout
    shapes = dict(prepared.algorithm.sends(layout, prepared.experiment))
    if sent is not None:
        shapes |= {name: (int(sent.sum()),) for name, shape in shapes.items() if shape == (layout.n,)}
    if scored is not None:
        shapes[SCORES] = (len(scored[1]), 1)
    return {name: (torch.float32, shape) for name, shape in shapes.items()}


def read_update(
    prepared: Prepared, content: Buffer, sent: Tensor | None, scored: tuple[Score, Sequence[int]] | None
) -> tuple[Update, dict[str, Tensor]]:
    """The header and the tensors of a client's message, whole vectors again.

    Raises FedloomError when it is not one of this experiment, or holds anything else than the algorithm declares.
    """
    layout = prepared.binding.layout
    shapes = prepared.algorithm.sends(layout, prepared.experiment)
    whole = [name for name, shape in shapes.items() if shape == (layout.n,)]
    header, message = decode(content, Update, declared(prepared, sent, scored), layout.digest)
    return header, unpack(message, sent, whole)
