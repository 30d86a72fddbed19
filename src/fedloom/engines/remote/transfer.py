"""Blobs in chunks: many in flight, each in its place of memory that is taken once, the whole verified by its digest.

A blob of `size` bytes is ceil(size / CHUNK) messages, all but the last of CHUNK bytes; an empty blob is none. Chunks may come in
any order and more than once, so that a transfer goes on after a fault where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256

import numpy as np

from fedloom.codec.wire import Buffer
from fedloom.engines.remote.link import Blob
from fedloom.errors import FedloomError

__all__ = ["CHUNK", "WINDOW", "Assembly", "Refused", "chunk", "chunk_size", "chunks", "windowed"]

CHUNK = 1024 * 1024
"""Bytes of a chunk: what a broker takes in one message unless told otherwise."""
WINDOW = 8
"""Chunks in flight of one transfer: what a slow party can make another buffer is WINDOW * CHUNK, 8 MiB."""


class Refused(FedloomError):
    """Content is not what was announced, or larger than is accepted."""


def chunks(size: int) -> int:
    """How many chunks `size` bytes are."""
    return -(-size // CHUNK)


def chunk_size(size: int, index: int) -> int:
    """The bytes of one chunk of a blob of `size` bytes; 0 when it has no such chunk."""
    return max(0, min(CHUNK, size - index * CHUNK)) if index >= 0 else 0


def chunk(content: Buffer, index: int) -> memoryview:
    """One chunk of a blob, which is not copied."""
    return memoryview(content)[index * CHUNK : (index + 1) * CHUNK]


class Assembly:
    """A blob that arrives; its memory is taken once, when the announced size has been accepted.

    Raises Refused when the blob is larger than `limit`, before any memory is taken.
    """

    def __init__(self, blob: Blob, limit: int, *, where: str) -> None:
        if blob.size > limit:
            why = f"it has {blob.size} bytes, and at most {limit} are accepted"
            raise Refused(f"{blob.key} is too large", where=where, why=why)
        self._blob, self._where = blob, where
        self._memory = np.empty(blob.size, np.uint8).data  # taken from the system as chunks are put
        self._missing = set(range(chunks(blob.size)))

    @property
    def missing(self) -> list[int]:
        """The chunks that have not arrived, in order."""
        return sorted(self._missing)

    @property
    def left(self) -> int:
        """How many chunks have not arrived."""
        return len(self._missing)

    def put(self, index: int, content: bytes) -> None:
        """Take one chunk; one that is there already is not taken again.

        Raises Refused when there is no such chunk, or when it has another size.
        """
        expected = chunk_size(self._blob.size, index)
        if not expected or len(content) != expected:
            why = f"chunk {index} has {len(content)} bytes instead of {expected}"
            raise Refused(f"{self._blob.key} is not what was announced", where=self._where, why=why)
        if index in self._missing:
            self._memory[index * CHUNK : index * CHUNK + expected] = content
            self._missing.remove(index)

    def finish(self) -> memoryview:
        """The whole blob, which is the reader's from then on.

        Raises Refused when chunks are missing, or when its SHA-256 is another.
        """
        content, self._memory = self._memory, memoryview(b"")
        if self._missing or sha256(content).hexdigest() != self._blob.sha256:
            why = f"{self.left} chunks are missing" if self._missing else "its SHA-256 is another"
            raise Refused(f"{self._blob.key} is not what was announced", where=self._where, why=why)
        return content


async def windowed(indices: Iterable[int], move: Callable[[int], Awaitable[None]], beat: float) -> None:
    """Move all chunks, several at a time; the first that fails stops the rest.

    At most WINDOW at a time, and fewer where they take long, so that on a slow link beats (`beat` seconds apart) do not wait behind
    seconds' worth of chunks: twice as many while one takes less than a quarter of a beat, half when it takes more than half.
    """
    left, running, room = iter(indices), set[asyncio.Future[float]](), 4

    async def timed(index: int) -> float:
        began = time.monotonic()
        await move(index)
        return time.monotonic() - began

    try:
        while True:
            while len(running) < room and (index := next(left, None)) is not None:
                running.add(asyncio.ensure_future(timed(index)))
            if not running:
                return
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            slowest = max([each.result() for each in done])
            room = min(WINDOW, room * 2) if slowest < beat / 4 else max(1, room // 2) if slowest > beat / 2 else room
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
