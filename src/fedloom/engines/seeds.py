"""Clients that send derivatives alone: their messages, counted and read, and their updates made again from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedloom.codec.wire import Buffer, Seeds, decode, encode, encoded_size, read_header
from fedloom.config.gradient import Directional
from fedloom.local.group import Group
from fedloom.local.prepare import Prepared
from fedloom.local.seeds import check_count, derivatives_of, rebuild
from fedloom.local.weighting import client_weight

__all__ = ["read_seeds", "sends_seeds", "through_seeds"]


def sends_seeds(prepared: Prepared) -> bool:
    """Whether what leaves a client are derivatives."""
    gradient = prepared.experiment.local.gradient
    return isinstance(gradient, Directional) and gradient.upload == "seeds" and prepared.algorithm.federated


def through_seeds(
    prepared: Prepared, group: Group, order: Sequence[int], beside: Mapping[str, Tensor]
) -> tuple[list[int], Tensor]:
    """The bytes of each member's message, and where the server finds that the members ended, `[K, n]`.

    `beside` is what else they send, a row a client. The server repeats the steps of the group as it was trained, so that the bits
    are the same.
    """
    sizes, received, digest = [], [], prepared.binding.layout.digest
    for k, (client, member) in enumerate(zip(order, group.members, strict=True)):
        derivatives, size = derivatives_of(member), 0
        if member.failure is None:
            header = Seeds(
                layout=digest, round=group.round, client=member.client, weight=client_weight(prepared, client),
                **member.facts, directions=len(derivatives),
            )  # fmt: skip
            message = {"derivatives": derivatives} | {name: values[k].cpu() for name, values in beside.items()}
            size = encoded_size(header, message)
            if prepared.experiment.engine.wire:
                derivatives = read_seeds(prepared, encode(header, message), message)["derivatives"]
        sizes.append(size)
        received.append(derivatives)
    return sizes, rebuild(group, prepared.algorithm, received)


def read_seeds(prepared: Prepared, content: Buffer, beside: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a message, if they can be those of a client of this experiment; `beside` has the shapes of what else is sent.

    Raises FedloomError for a message of another layout, or of more derivatives than a client's steps have.
    """
    gradient, digest = prepared.experiment.local.gradient, prepared.binding.layout.digest
    assert isinstance(gradient, Directional)
    header, _ = read_header(content, Seeds, digest)
    check_count(header, gradient)
    expected = {name: (value.dtype, tuple(value.shape)) for name, value in beside.items()}
    return decode(content, Seeds, expected | {"derivatives": (torch.float32, (header.directions,))}, digest)[1]
