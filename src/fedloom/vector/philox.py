"""Random numbers computed from a key and a counter in integer arithmetic: the same bits on every device, in any order.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3": ten rounds of
    (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),   (k0, k1) += (W0, W1)
turn a 128-bit counter and a 64-bit key into 128 random bits, a *block*. Torch's int64 product wraps modulo 2^64, so it
holds all 64 bits of a product of two 32-bit words, and no operation here rounds.

A block gives 8 normals (16 bits each) or 128 signs (a bit each). Logarithms and cosines differ in their last bit between
devices, so normals are looked up: entry i of 65,536 is the normal quantile at (i + 1/2) / 65536, scaled to variance one
and rounded to a multiple of 2^-16. What that costs against the real distribution, all pinned in the tests:
    mean 0 exactly (the table is odd), |variance - 1| < 2e-8, kurtosis 2.9992, largest value 4.325 (probability 3e-5).
A forward gradient depends on the law of its directions through the variance (1, it is unbiased) and the kurtosis
(3, its own variance) alone. The grid makes sums of squares exact: up to 2^21 in float64, whatever the order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from fedloom.errors import FedloomError
from fedloom.vector.layout import Layout, Slice
from fedloom.vector.streams import stream_seed

__all__ = [
    "LONGEST",
    "VALUES_PER_BLOCK",
    "Chunk",
    "Only",
    "Part",
    "chosen_values",
    "chunks",
    "generate",
    "normal_table",
    "parts_of",
    "philox4x32",
    "values",
]

_WORD = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # multipliers
_W0, _W1 = 0x9E3779B9, 0xBB67AE85  # what each round adds to the key
_ROUNDS = 10
_GRID = 65536  # entries of the normal table, and the inverse of the step its entries are rounded to

VALUES_PER_BLOCK = {"gaussian": 8, "rademacher": 128}
LONGEST = 1 << 20  # values of one direction made at once: sums of this many squares are exact in float64

Only = Tensor | Collection[int]
"""The entries directed at: a boolean `[n]`, or the numbers of whole slices. All others are zero and never computed."""


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four 32-bit words of a block, as int64 in [0, 2^32), for four counter words and two key words that broadcast."""
    shape = np.broadcast_shapes(*(x.shape for x in (*counter, *key)))
    p0, p1, c0, c1, c2, c3 = torch.empty(6, *shape, dtype=torch.int64, device=counter[0].device).unbind()
    for lane, word in zip((c0, c1, c2, c3), counter, strict=True):
        lane.copy_(word)
    rounds = torch.arange(_ROUNDS, device=key[0].device).view(-1, *[1] * key[0].dim())
    keys = ((word + rounds * step & _WORD).unbind() for word, step in zip(key, (_W0, _W1), strict=True))
    for k0, k1 in zip(*keys, strict=True):
        torch.mul(c0, _M0, out=p0)
        torch.mul(c2, _M1, out=p1)
        # Lower halves keep what stands above them until they are mixed in, a round later, and masked.
        torch.bitwise_right_shift(p1, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_WORD)
        torch.bitwise_right_shift(p0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_WORD)
        c1, p1, c3, p0 = p1, c1, p0, c3
    return c0, c1.bitwise_and_(_WORD), c2, c3.bitwise_and_(_WORD)


@lru_cache(maxsize=1)
def normal_table() -> Tensor:
    """Float32 `[65536]`, ascending: standard normal quantiles at the middles of equal bins, of variance one, on the grid 2^-16."""
    upper = [NormalDist().inv_cdf(0.5 + (i + 0.5) / _GRID) for i in range(_GRID // 2)]
    unit = math.sqrt(_GRID / 2 / math.fsum(z * z for z in upper))
    rounded = [round(z * unit * _GRID) / _GRID for z in upper]
    return torch.tensor([-z for z in reversed(rounded)] + rounded, dtype=torch.float32)


@lru_cache(maxsize=16)
def _table(kind: str, device: torch.device) -> Tensor:
    """What an index is looked up in: `[65536]` normals for 16 bits, `[256, 8]` signs for 8, lowest bit first."""
    if kind == "gaussian":
        return normal_table().to(device)
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return (1 - 2 * bits).to(device, torch.float32)


def values(keys: Tensor, blocks: Tensor, slices: Tensor, kind: str) -> Tensor:
    """Float32 `[K, b * VALUES_PER_BLOCK[kind]]`: for keys `[K]`, the blocks `[b]` of the slices with the ids `[b]` (or `[1]`).

    The counter is (block, slice id), 64 bits each, low word first. Keys, blocks and ids are int64 and not negative.
    """
    counter = [x.view(1, -1) for x in (blocks & _WORD, blocks >> 32, slices & _WORD, slices >> 32)]
    column = keys.view(-1, 1)
    w0, w1, w2, w3 = philox4x32(counter, (column & _WORD, column >> 32))
    bits = torch.stack((w1.bitwise_left_shift_(32).bitwise_or_(w0), w3.bitwise_left_shift_(32).bitwise_or_(w2)), dim=-1)
    if kind == "gaussian":  # memory holds the lowest half of a word first on every machine torch is built for
        index = bits.view(torch.int16).view(-1).to(torch.int32).bitwise_and_(_GRID - 1)
    else:
        index = bits.view(torch.uint8).view(-1).to(torch.int32)
    return _table(kind, bits.device).index_select(0, index).view(len(keys), -1)


# What is chosen, and its numbers chunk by chunk


@dataclass(frozen=True)
class Part:
    """A slice of which something is chosen: all of it, or the entries in `index`."""

    slice: Slice
    index: Tensor | None

    @property
    def chosen(self) -> int:
        return self.slice.size if self.index is None else len(self.index)


@dataclass(frozen=True)
class Chunk:
    """Blocks `[b]` with the ids of their slices, and where their values go: (columns of the values, entries of the vector)."""

    blocks: Tensor
    slices: Tensor
    moves: list[tuple[slice | Tensor, slice | Tensor]]


@lru_cache(maxsize=65536)
def _slice_id(name: str) -> int:
    return stream_seed(0, "slice", name)


def parts_of(layout: Layout, only: Only | None) -> list[Part]:
    """The chosen parts of a layout, in its order."""
    if only is None:
        return [Part(s, None) for s in layout.slices]
    if isinstance(only, Tensor):
        if only.dtype != torch.bool or only.shape != (layout.n,):
            raise FedloomError(
                f"the choice of entries is a {tuple(only.shape)} {only.dtype}, not a boolean of length {layout.n}",
                fix="use `layout.mask` or `layout.matching`, or give the numbers of slices",
            )
        found = [(s, only[s.offset : s.offset + s.size].nonzero().view(-1).cpu()) for s in layout.slices]
        parts = [Part(s, None if len(index) == s.size else index) for s, index in found if len(index)]
    else:
        unknown = sorted(i for i in only if not 0 <= i < len(layout.slices))
        if unknown:
            raise FedloomError(f"there is no slice {unknown[0]}: the layout has {len(layout.slices)}, counted from 0")
        parts = [Part(layout.slices[i], None) for i in sorted(set(only))]
    if not parts:
        raise FedloomError("no entry of the trainable vector is chosen", fix="choose at least one slice to estimate")
    return parts


def chunks(parts: Sequence[Part], width: int, most: int, device: torch.device) -> Iterator[Chunk]:
    """The blocks of the parts, at most `most` at once; slices share a chunk, and blocks without a chosen entry are left out."""
    pending: list[tuple[Part, Tensor]] = []
    room = most
    for part in parts:
        # A whole slice's blocks are not listed before they are due: there may be billions of entries.
        listed = None if part.index is None else torch.unique(part.index // width)
        start, end = 0, -(-part.slice.size // width) if listed is None else len(listed)
        while start < end:
            take = min(room, end - start)
            blocks = torch.arange(start, start + take) if listed is None else listed[start : start + take]
            pending.append((part, blocks))
            start, room = start + take, room - take
            if not room:
                yield _chunk(pending, width, device)
                pending, room = [], most
    if pending:
        yield _chunk(pending, width, device)


def _chunk(pieces: Sequence[tuple[Part, Tensor]], width: int, device: torch.device) -> Chunk:
    moves: list[tuple[slice | Tensor, slice | Tensor]] = []
    column = 0
    for part, blocks in pieces:
        first, last, offset = int(blocks[0]) * width, (int(blocks[-1]) + 1) * width, part.slice.offset
        if part.index is None:
            last = min(last, part.slice.size)
            moves.append((slice(column, column + last - first), slice(offset + first, offset + last)))
        else:
            ends = torch.searchsorted(part.index, torch.tensor([first, last]))
            entries = part.index[int(ends[0]) : int(ends[1])]
            columns = column + torch.searchsorted(blocks, entries // width) * width + entries % width
            moves.append((columns.to(device), (offset + entries).to(device)))
        column += len(blocks) * width
    ids = torch.tensor([_slice_id(part.slice.name) for part, _ in pieces])
    if len(pieces) > 1:
        ids = ids.repeat_interleave(torch.tensor([len(blocks) for _, blocks in pieces]))
    return Chunk(torch.cat([blocks for _, blocks in pieces]).to(device), ids.to(device), moves)


def generate(
    parts: Sequence[Part], keys: Sequence[int], kind: str, device: torch.device, chunk: int | None
) -> Iterator[tuple[Chunk, slice, Tensor]]:
    """Every chunk of every direction, before scaling: (chunk, rows, values `[rows, columns]`), a chunk's rows in order."""
    budget = 1 << 19 if device.type == "cpu" else 1 << 24  # values at once: more gains nothing, fewer cost calls
    chunk = min(chunk or budget // min(len(keys), 8), LONGEST)
    base = "rademacher" if kind == "rademacher" else "gaussian"
    width = VALUES_PER_BLOCK[base]
    tensor = torch.tensor(keys, device=device)
    for blocks in chunks(parts, width, max(1, chunk // width), device):
        rows = max(1, budget // (len(blocks.blocks) * width))
        for start in range(0, len(keys), rows):
            some = slice(start, min(start + rows, len(keys)))
            yield blocks, some, values(tensor[some], blocks.blocks, blocks.slices, base)


def chosen_values(blocks: Chunk, numbers: Tensor) -> Tensor:
    """The chosen columns of a chunk's values, without the rest of each last block."""
    return torch.cat([numbers[:, source] for source, _ in blocks.moves], dim=1)
