"""The small messages beside asks and answers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fedloom.engines.remote.transfer import WINDOW

__all__ = ["CHUNKS_COME", "CHUNK_FOLLOWS", "Beat", "News", "Wanted"]

CHUNK_FOLLOWS, CHUNKS_COME, NOT_HELD = b"1", b"2", b"0"
"""How the coordinator's reply to Wanted begins: with the only chunk; chunks will be delivered; there is no such blob."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Note(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Beat(_Note):
    """A client is here, and has these asks, by id and digest."""

    busy: Annotated[list[tuple[str, Digest]], Field(max_length=64)]


class News(_Note):
    """Asks, by digest, that are withdrawn."""

    withdrawn: Annotated[list[Digest], Field(max_length=4096)]


class Wanted(_Note):
    """A client wants a blob from its chunk `first` on, in its inbox under `to`, at most `window` chunks unacknowledged."""

    sha256: Digest
    size: Annotated[int, Field(gt=0)]
    first: Annotated[int, Field(ge=0)]
    to: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    window: Annotated[int, Field(ge=1, le=WINDOW)]
