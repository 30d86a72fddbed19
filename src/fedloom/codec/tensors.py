"""The tensors of a message: safetensors, of which one encoding only is valid for what was declared.

A reader knows names, types and shapes beforehand, so it makes the description that must stand there and compares bytes: what a
message claims is never parsed, and never decides how much memory is taken.
"""

from __future__ import annotations

import json
import math
import re
import struct
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import FedloomError

__all__ = ["DTYPES", "Declared", "Plan", "pack", "plan", "signature_of", "unpack"]

if sys.byteorder != "little":
    raise ImportError("numbers travel in the order of little-endian machines, and this one is none")

# The names that safetensors gives them, and its order, the widest first: so every tensor is aligned to its own type.
DTYPES: dict[torch.dtype, str] = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_RANKS = {dtype: rank for rank, dtype in enumerate(DTYPES)}
_NAME = re.compile(r"(?!__metadata__$)[ !#-\[\]-~]{1,256}")

Declared = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
_Signature = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class _Part(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the end of the description."""
    end: int


class Plan(NamedTuple):
    """Where the bytes of declared tensors lie."""

    description: bytes
    """What stands before the numbers: its own length (8 bytes) and JSON, filled up to a multiple of 8 with spaces."""
    parts: list[_Part]
    size: int
    """Bytes in all."""


def signature_of(tensors: Mapping[str, Tensor]) -> _Signature:
    """All that the size of encoded tensors depends on."""
    return tuple([(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()])


@lru_cache(maxsize=64)
def plan(signature: _Signature) -> Plan:
    """Where the bytes of tensors of these names, types and shapes lie.

    Raises FedloomError for a name or a type that cannot travel.
    """
    for name, dtype, _ in signature:
        if dtype not in DTYPES:
            raise _impossible(f"tensor {name!r} is of type {dtype}", f"of these types can travel: {_known()}")
        if not _NAME.fullmatch(name):
            raise _impossible(
                f"{name!r} is no name for a tensor",
                "use at most 256 printable characters of ASCII, no quotes or backslashes",
            )
    parts, begin = [], 0
    for name, dtype, shape in sorted(signature, key=lambda own: (_RANKS[own[1]], own[0])):
        end = begin + math.prod(shape) * dtype.itemsize
        parts.append(_Part(name, dtype, shape, begin, end))
        begin = end
    said = {p.name: {"dtype": DTYPES[p.dtype], "shape": p.shape, "data_offsets": (p.begin, p.end)} for p in parts}
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    description = struct.pack("<Q", len(text)) + text
    return Plan(description, parts, len(description) + begin)


def pack(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """The description and the numbers of each tensor, which are not copied where they lie in one piece of this machine's memory."""
    own = plan(signature_of(tensors))
    return [own.description, *(_raw(tensors[part.name]) for part in own.parts)]


def _raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def unpack(content: memoryview, declared: Declared) -> dict[str, Tensor]:
    """The declared tensors; they share the memory of `content` where it can be written to, and of one copy where it cannot.

    Raises ValueError, with the reason, when there is anything else than these tensors, or a number that is not finite.
    """
    own = plan(tuple([(name, dtype, tuple(shape)) for name, (dtype, shape) in declared.items()]))
    start = len(own.description)
    if content[:start] != own.description:
        raise ValueError(f"its tensors are {bytes(content[8:208])!r}, declared are {own.description[8:208]!r}")
    if len(content) != own.size:
        raise ValueError(f"its tensors take {len(content)} bytes, those declared {own.size}")
    numbers: memoryview | bytearray = content[start:]
    if content.readonly or _address(content) % 8:
        numbers = bytearray(numbers)
    tensors = {part.name: _view(numbers, part) for part in own.parts}
    for name, tensor in tensors.items():
        if not _finite(tensor):
            raise ValueError(f"tensor {name!r} holds a number that is not finite")
    return tensors


def _address(content: memoryview) -> int:
    return int(np.frombuffer(content, np.uint8).ctypes.data)


def _view(numbers: memoryview | bytearray, part: _Part) -> Tensor:
    count = math.prod(part.shape)
    if not count:  # which frombuffer cannot make
        return torch.empty(part.shape, dtype=part.dtype)
    return torch.frombuffer(numbers, dtype=part.dtype, count=count, offset=part.begin).reshape(part.shape)


def _finite(tensor: Tensor) -> bool:
    """Whether all numbers are; without the masks, as large as the tensor itself, that `isfinite` makes."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return all(math.isfinite(bound) for bound in torch.aminmax(tensor))


def _impossible(what: str, fix: str) -> FedloomError:
    return FedloomError("a message cannot be made", why=what, fix=fix)


def _known() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
