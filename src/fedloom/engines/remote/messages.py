"""What the asks and answers of a run say, field by field, and what is sent to clients as a blob.

Both sides check what they read against these, so an unknown field or a number that is not finite is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from fedloom.codec.tensors import DTYPES
from fedloom.codec.wire import Broadcast, Buffer, decode, encode
from fedloom.config.layers import Score
from fedloom.config.schema import Checkpoints
from fedloom.errors import FedloomError
from fedloom.local.prepare import Prepared

__all__ = [
    "Evaluate",
    "Holding",
    "Judged",
    "Open",
    "Scored",
    "Spent",
    "Train",
    "Vector",
    "oldest",
    "pack_mask",
    "read_facts",
    "read_vector",
    "spell",
    "unpack_mask",
    "vector",
]

F = TypeVar("F", bound="Facts")
Count = Annotated[int, Field(ge=0, lt=1 << 53)]

_RESIDUAL = "residual."
_OF_NAME = {name: dtype for dtype, name in DTYPES.items()}


class Facts(BaseModel):
    """Facts of an ask or of an answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Open(Facts):
    """An ask to make an experiment ready; its text is the blob `experiment`."""

    base: str
    """Fingerprint of the base model."""
    layout: str
    """Digest of the layout."""


class Holding(Facts):
    """What a client says that it holds: all that leaves it of its rows themselves."""

    rows: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Rows it trains on."""
    tokens: Count
    """Of those rows."""
    validation: Annotated[int, Field(ge=0, lt=1 << 40)]
    """Rows it judges on."""


class Vector(Facts):
    """How the server's vector was packed, in the blob `vector`."""

    whole: bool
    """Whether all entries are there but the private ones; else those that the algorithm says a client receives."""
    tensors: dict[str, tuple[str, list[int]]]
    """Type and shape of each."""


class _Asked(Facts):
    vector: Vector
    total: Annotated[int, Field(ge=1)]
    """Clients of the federation."""
    rank: int | None = None
    """The client's LoRA rank, where ranks differ."""
    void: list[int] = []
    """Rounds whose update did not join: the client forgets what it kept after them."""


class Scored(Facts):
    """Which layers are scored, and how."""

    score: Score
    layers: list[int]


class Train(_Asked):
    """An ask to train; where layers are chosen, those that train are the blob `layers`."""

    cohort: Annotated[int, Field(ge=1)]
    """Clients asked this time."""
    lr_factor: float
    staleness: int = 0
    batches: int | None = None
    scored: Scored | None = None


class Evaluate(_Asked):
    """An ask to judge the vector after a round on the client's own validation rows."""


class Spent(Facts):
    """What training took, beside what the update's header says."""

    forward_equivalents: Count
    directions: Count


class Judged(Facts):
    """What a client measured."""

    rows: Annotated[int, Field(ge=1)]
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")], float]


def read_facts(facts: Mapping[str, JsonValue], kind: type[F]) -> F:
    """The facts, checked.

    Raises FedloomError for any that are missing, unknown, or not what they should be.
    """
    try:
        return kind.model_validate_json(json.dumps(dict(facts)))
    except (ValidationError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise FedloomError("what a message says cannot be read", why=why) from error


def spell(facts: Facts) -> dict[str, JsonValue]:
    """The facts as an ask or an answer holds them."""
    spelled: dict[str, JsonValue] = facts.model_dump(mode="json", exclude_defaults=True)
    return spelled


def oldest(checkpoints: Checkpoints, round: int) -> int:
    """The oldest round from which a run that is now in a round may be resumed: as many checkpoints ago as are kept."""
    return max(0, ((round - 1) // checkpoints.every - (checkpoints.keep_last - 1)) * checkpoints.every)


def vector(prepared: Prepared, w: Tensor, beside: Mapping[str, Tensor], round: int) -> tuple[bytes, Vector]:
    """The server's vector `[n]` and what goes beside it, for clients that hold nothing but the base model; and how to read it.

    A client makes the entries that it does not receive from its own first vector, which is everybody's. Where that would not give
    `w` (a method's clients follow it round by round, and one may have missed some), all entries are sent; and what the server has
    added to the base weights is sent as a whole. Private entries never travel.
    """
    private = prepared.algorithm.private(prepared.binding.layout)
    received = prepared.algorithm.receives(prepared.binding.layout, round)
    whole = received is not None and not _made(w, prepared.initial, received, private)
    sent = _entries(prepared, round, whole)
    tensors = {**beside, "w": w if sent is None else w[sent]}
    for name, (u, v) in sorted(prepared.binding.folded.items()):
        tensors |= {f"{_RESIDUAL}U.{name}": u, f"{_RESIDUAL}V.{name}": v}
    content = encode(Broadcast(layout=prepared.binding.layout.digest, round=round), tensors)
    said = {name: (DTYPES[value.dtype], list(value.shape)) for name, value in sorted(tensors.items())}
    return content, Vector(whole=whole, tensors=said)


def read_vector(
    prepared: Prepared, content: Buffer, facts: Vector, round: int
) -> tuple[Tensor, dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """The vector `[n]`, what goes beside it, and what is to be folded into the base weights.

    Raises FedloomError when it is of another layout or round, or not as the facts say.
    """
    layout = prepared.binding.layout
    sent = _entries(prepared, round, facts.whole)
    if odd := sorted({dtype for dtype, _ in facts.tensors.values()} - _OF_NAME.keys()):
        raise FedloomError("a message was refused", why=f"no tensor travels as {odd[0]!r}")
    expected = {name: (_OF_NAME[dtype], tuple(shape)) for name, (dtype, shape) in facts.tensors.items()}
    expected["w"] = (torch.float32, (layout.n if sent is None else int(sent.sum()),))
    header, tensors = decode(content, Broadcast, expected, layout.digest)
    if header.round != round:
        raise FedloomError("a message was refused", why=f"it is of round {header.round}, and this is round {round}")
    w = tensors.pop("w")
    if sent is not None:
        w = prepared.initial.masked_scatter(sent, w)
    start = f"{_RESIDUAL}U."
    names = [key.removeprefix(start) for key in tensors if key.startswith(start)]
    folded = {name: (tensors.pop(start + name), tensors.pop(f"{_RESIDUAL}V.{name}")) for name in names}
    return w, tensors, folded


def _made(w: Tensor, initial: Tensor, received: Tensor, private: Tensor | None) -> bool:
    """Whether the entries that are not received are those of the first vector, or private."""
    rest = ~received if private is None else ~received & ~private
    return torch.equal(w[rest], initial[rest])


def _entries(prepared: Prepared, round: int, whole: bool) -> Tensor | None:
    """The entries, `[n]`, that are sent; None for all. A private one is never among them."""
    layout = prepared.binding.layout
    private = prepared.algorithm.private(layout)
    public = None if private is None else ~private
    received = None if whole else prepared.algorithm.receives(layout, round)
    if received is None:
        return public
    return received if public is None else received & public


def pack_mask(mask: Tensor) -> bytes:
    """A boolean vector as bits, eight to a byte."""
    return np.packbits(mask.cpu().numpy()).tobytes()


def unpack_mask(content: Buffer, n: int) -> Tensor:
    """The boolean vector `[n]`.

    Raises FedloomError when it is of another length.
    """
    if len(content) != -(-n // 8):
        raise FedloomError("a message was refused", why=f"{len(content)} bytes are no choice among {n} entries")
    return torch.from_numpy(np.unpackbits(np.frombuffer(content, np.uint8), count=n).astype(bool))
