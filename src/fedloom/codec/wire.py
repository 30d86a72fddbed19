"""Messages between server and clients: a closed JSON header, then safetensors. Nothing in a message can execute.

message = "fedloom" | version (1 byte) | length of the header (4 bytes, little endian) | header (JSON) | tensors (safetensors)

`docs/wire.md` specifies it for other languages, with all that a reader refuses.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from fedloom.codec.tensors import Declared, pack, plan, signature_of, unpack
from fedloom.errors import FedloomError

__all__ = [
    "MAX_HEADER",
    "VERSION",
    "Broadcast",
    "Buffer",
    "Header",
    "Seeds",
    "Update",
    "decode",
    "encode",
    "encoded_size",
    "read_header",
    "size_limit",
]

VERSION = 1
"""Of the format: any change of its bytes or their meaning is another version."""
MAX_HEADER = 4096
"""Bytes of a header, at most."""

_MAGIC = b"fedloom"
_FRONT = struct.Struct("<7sBI")
_ALIGNED = 8

H = TypeVar("H", bound="Header")
Buffer = bytes | bytearray | memoryview
Count = Annotated[
    int, Field(ge=0, lt=1 << 53)
]  # what a float64 holds exactly, and with it the numbers of any JSON library


class Header(BaseModel):
    """What a message says of itself; unknown keys and non-finite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    layout: Annotated[str, Field(max_length=64)]
    round: Count


class Broadcast(Header):
    """The server's vector, tensor `w` `[n]`."""

    kind: Literal["broadcast"] = "broadcast"


class _FromClient(Header):
    client: str
    weight: Annotated[float, Field(ge=0)]
    samples: Count
    tokens: Count
    steps: Count
    train_loss: float


class Update(_FromClient):
    """What a client learnt, tensor `delta` `[n]`, and what it weighs."""

    kind: Literal["update"] = "update"


class Seeds(_FromClient):
    """The derivatives, tensor `derivatives` `[directions]`, step after step, from which the update can be made again."""

    kind: Literal["seeds"] = "seeds"
    directions: Count


def encode(header: Header, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a message.

    Raises FedloomError for a header that is too long, and for tensors of a name or a type that cannot travel.
    """
    return b"".join([_front(header), *pack(tensors)])


def encoded_size(header: Header, tensors: Mapping[str, Tensor]) -> int:
    """`len(encode(header, tensors))`, exactly, from the header and the names, types and shapes of the tensors alone."""
    return len(_front(header)) + plan(signature_of(tensors)).size


def size_limit(declared: Declared) -> int:
    """The bytes that a message with these tensors has at most: what a transport accepts before it holds the message."""
    return _FRONT.size + MAX_HEADER + plan(tuple([(n, t, tuple(s)) for n, (t, s) in declared.items()])).size


def _front(header: Header) -> bytes:
    text = header.model_dump_json().encode()
    text += b" " * (-(_FRONT.size + len(text)) % _ALIGNED)  # so that what follows is aligned
    if len(text) > MAX_HEADER:
        why = f"its header has {len(text)} bytes, and {MAX_HEADER} are allowed"
        raise FedloomError("a message cannot be made", why=why, fix="shorten the client's name")
    return _FRONT.pack(_MAGIC, VERSION, len(text)) + text


def read_header(data: Buffer, kind: type[H], layout: str | None = None) -> tuple[H, int]:
    """The header of a message of a known kind, and where its tensors begin.

    Raises FedloomError when there is no such header, it is of another version of the format, or of another layout than the one
    with this digest.
    """
    if len(data) < _FRONT.size:
        _refuse(f"it has {len(data)} bytes")
    magic, version, length = _FRONT.unpack_from(data)
    if magic != _MAGIC:
        _refuse(f"it begins with {magic!r}, not with {_MAGIC!r}")
    if version != VERSION:
        why = f"stale version: it is of version {version} of the wire format, and this side's is {VERSION}"
        _refuse(why, fix="Run the same version of fedloom on both sides")
    start = _FRONT.size + length
    if length > min(MAX_HEADER, len(data) - _FRONT.size) or start % _ALIGNED:
        _refuse(f"its header claims {length} bytes")
    header = _parse(bytes(data[_FRONT.size : start]), kind)
    if layout is not None and header.layout != layout:
        _refuse(f"it is of layout {header.layout[:12]!r}, and this model's is {layout[:12]!r}")
    return header, start


def decode(data: Buffer, kind: type[H], expected: Declared, layout: str | None = None) -> tuple[H, dict[str, Tensor]]:
    """The header and tensors of a message of a known kind and, where it is given, of the layout with this digest.

    The tensors share the memory of `data` where that can be written to (a bytearray is the reader's from then on); of bytes they
    are one copy. Nothing else is made that grows with the message.

    Raises FedloomError when the message is longer than the declared tensors allow, holds other keys, names, types or shapes
    than declared, or a number that is not finite.
    """
    limit = size_limit(expected)
    if len(data) > limit:
        _refuse(f"it has {len(data)} bytes; at most {limit} are allowed")
    header, start = read_header(data, kind, layout)
    try:
        return header, unpack(memoryview(data)[start:], expected)
    except ValueError as error:
        _refuse(str(error), cause=error)


def _parse(text: bytes, kind: type[H]) -> H:
    try:
        found = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_constant)
    except (ValueError, RecursionError) as error:  # not JSON in UTF-8, a key twice; nested without end
        _refuse(f"its header is not valid: {str(error)[:200]}", cause=error)
    if not isinstance(found, dict):
        _refuse("its header is not valid: it is no object")
    for name in found:  # the first only, whereas pydantic would make a report of all
        if name not in kind.model_fields:
            _refuse(f"its header has no field {name[:80]!r}")
    if "kind" not in found:  # which has a default, for those who make headers
        _refuse("its header says no 'kind'")
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[:3]
        _refuse("; ".join(f"{d['loc'][0]!r}: {d['msg']}" for d in details), cause=error)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object, of which no key comes twice, where two readers might take two different values, and whose texts are Unicode."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    for value in found.values():
        if isinstance(value, str):
            value.encode()  # half a surrogate pair, which JSON can escape, cannot be
    return found


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse(why: str, fix: str | None = None, cause: Exception | None = None) -> NoReturn:
    raise FedloomError("a message was refused", why=why, fix=fix) from cause
