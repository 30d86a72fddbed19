"""The coordinator's blobs: what it stores for clients, and what it collects from them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import nats.js.errors

from fedloom.codec.wire import Buffer
from fedloom.engines.remote import subjects
from fedloom.engines.remote.connection import Connection
from fedloom.engines.remote.link import Ask, Blob
from fedloom.engines.remote.notes import CHUNK_FOLLOWS, CHUNKS_COME, NOT_HELD, Wanted
from fedloom.engines.remote.signing import Signer
from fedloom.engines.remote.streams import Streams
from fedloom.engines.remote.subjects import COORDINATOR, DOWN
from fedloom.engines.remote.transfer import Assembly, Refused, chunk, chunk_size, chunks, windowed

__all__ = ["Blobs"]


class Blobs:
    """Blobs are kept by content: under a name that follows from their digest, and with a mark for each round that names them."""

    def __init__(self, connection: Connection, streams: Streams, signer: Signer) -> None:
        self._connection, self._streams, self._signer = connection, streams, signer
        self._stored: set[str] = set()  # names of blobs that this process has stored, or found stored and whole
        self._marked: set[str] = set()
        self._fresh: set[str] = set()  # stored, and not named by an ask yet

    def describe(self, key: str, content: bytes) -> Blob:
        """A blob of these bytes."""
        return Blob(key=key, sha256=sha256(content).hexdigest(), size=len(content))

    def _name(self, digest: str) -> str:
        return self._signer.name(COORDINATOR, digest)

    async def store(self, blob: Blob, content: bytes) -> None:
        """Store what is not stored yet; chunks of an earlier process are compared, and mended where they differ."""
        name = self._name(blob.sha256)
        self._fresh.add(name)
        if name in self._stored or not blob.size:
            return

        async def move(index: int) -> None:
            subject, wanted = f"fl.down.{name}.chunk.{index}", chunk(content, index)
            while not await self._connection.publish(subject, wanted):
                if await self._is_stored(subject, wanted):
                    return
                await self._streams.purge(DOWN, subject)

        await windowed(range(chunks(blob.size)), move, self._connection.times.beat)
        self._stored.add(name)

    async def _is_stored(self, subject: str, content: Buffer) -> bool:
        try:
            return (await self._streams.read(DOWN, subject))[0] == content
        except nats.js.errors.NotFoundError:
            return False

    async def use(self, asks: Sequence[Ask]) -> None:
        """Mark the blobs that asks name, so that they are kept as long as the asks' rounds."""
        marks = {
            (self._name(blob.sha256), subjects.token(ask.run), ask.round) for ask in asks for blob in ask.blobs.values()
        }
        for name, run, number in sorted(marks):
            mark = f"fl.down.{name}.used.{run}.{number}"
            if mark not in self._marked:
                await self._connection.publish(mark, b"")
                self._marked.add(mark)
            self._fresh.discard(name)

    async def forget(self, run: str, before: int) -> None:
        """Free the blobs that only asks of earlier rounds of this run name, and those that none names."""
        kept, named, old = set(self._fresh), set[str](), list[str]()
        for subject in await self._streams.listing(DOWN, "fl.down.>"):
            parts = subject.split(".")
            named.add(parts[2])
            if len(parts) == 6 and parts[3] == "used":
                if parts[4] == run and int(parts[5]) < before:
                    old.append(subject)
                else:
                    kept.add(parts[2])
        for subject in old:
            if subject.split(".")[2] in kept:
                await self._streams.purge(DOWN, subject)
        for name in named - kept:
            self._stored.discard(name)
            await self._streams.purge(DOWN, f"fl.down.{name}.>")
        self._marked.difference_update(old)
        self._stored &= named

    async def offer(self, client: str, wanted: Wanted) -> bytes:
        """What a client that wants a blob is told; where there are several chunks, they begin to be delivered to its inbox."""
        name, count = self._name(wanted.sha256), chunks(wanted.size)
        pattern = f"fl.down.{name}.chunk"
        try:
            if count == 1:
                return CHUNK_FOLLOWS + (await self._streams.read(DOWN, f"{pattern}.0"))[0]
            if wanted.first >= count or len(await self._streams.listing(DOWN, f"{pattern}.*")) != count:
                return NOT_HELD
            start = (await self._streams.read(DOWN, f"{pattern}.{wanted.first}"))[1] if wanted.first else None
        except nats.js.errors.NotFoundError:
            return NOT_HELD
        to = f"{subjects.inbox(client)}.down.{wanted.to}"
        await self._streams.deliver(client, f"{pattern}.*", to, start, wanted.window)
        return CHUNKS_COME

    async def collect(self, ask: Ask, blob: Blob, limit: int, where: str) -> Buffer:
        """The content of an answer to this ask.

        Raises Refused when it is larger than `limit`, before memory is taken, or not what was announced.
        """
        arriving = Assembly(blob, limit, where=where)
        stream, subject = subjects.uploads_of(ask.client), subjects.upload_subject(ask, blob.key)

        async def move(index: int) -> None:
            try:
                content, _ = await self._streams.read(stream, f"{subject}.{index}")
            except nats.js.errors.NotFoundError:
                why = f"chunk {index} of {chunk_size(blob.size, index)} bytes is missing"
                raise Refused(f"{blob.key} is not what was announced", where=where, why=why) from None
            arriving.put(index, content)

        await windowed(arriving.missing, move, self._connection.times.beat)
        return arriving.finish()
