"""The coordinator's hand on the broker: streams and consumers are made, listed, read and purged here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import nats.js.errors
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, DiscardPolicy, StorageType, StreamConfig

from fedloom.engines.remote import subjects
from fedloom.engines.remote.connection import Connection
from fedloom.engines.remote.subjects import ASK, COORDINATOR, DOWN
from fedloom.engines.remote.transfer import CHUNK

__all__ = ["Streams", "together"]

_AT_ONCE = 32
_DELIVERIES = 100
"""How often an ask is told again: a bound, so that one which kills its client does not do so for ever."""
_ANSWERS_BYTES = 64 << 20
_ANSWERS_PENDING = 64


class Streams:
    """All that is kept of a federation; what is made is left as it is when it is there already."""

    def __init__(self, connection: Connection, upload_bytes: int) -> None:
        self._connection, self._upload_bytes = connection, upload_bytes

    async def make_common(self) -> None:
        """The streams that only the coordinator writes."""
        await self._make(_once(ASK, "fl.ask.>"))
        await self._make(_once(DOWN, "fl.down.>"))

    async def make_for(self, client: str, replies: str) -> None:
        """A client's own streams, and what delivers to it and from it; its answers are told to `replies` from the first on."""
        answers, uploads = subjects.answers_of(client), subjects.uploads_of(client)
        await self._make(StreamConfig(name=answers, subjects=[f"fl.ans.{client}.>"], max_bytes=_ANSWERS_BYTES))
        await self._make(
            _once(uploads, f"fl.up.{client}.>").evolve(max_bytes=self._upload_bytes, max_msg_size=CHUNK + 4096)
        )
        lease, js = self._connection.times.lease, self._connection.js
        asks = ConsumerConfig(
            name=client, durable_name=client, filter_subject=f"fl.ask.{client}.>", ack_policy=AckPolicy.EXPLICIT,
            deliver_subject=f"{subjects.inbox(client)}.ask", ack_wait=lease, max_deliver=_DELIVERIES, max_ack_pending=8,
        )  # fmt: skip
        await self._connection.steadily(lambda: js.add_consumer(ASK, asks))
        # one subject without wildcards: the broker delivers only where somebody listens to just that
        told = ConsumerConfig(
            name=COORDINATOR, durable_name=COORDINATOR, deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.EXPLICIT,
            deliver_subject=replies, ack_wait=lease, max_ack_pending=_ANSWERS_PENDING,
        )  # fmt: skip
        await self.end_consumer(answers, COORDINATOR)
        await self._connection.steadily(lambda: js.add_consumer(answers, told))

    async def deliver(self, client: str, pattern: str, to: str, start: int | None, window: int) -> None:
        """Deliver messages of DOWN to a client's inbox: at most `window` unacknowledged, from sequence number `start` on."""
        await self.end_consumer(DOWN, client)
        policy = DeliverPolicy.ALL if start is None else DeliverPolicy.BY_START_SEQUENCE
        lease = self._connection.times.lease
        config = ConsumerConfig(
            name=client, filter_subject=pattern, deliver_subject=to, ack_policy=AckPolicy.EXPLICIT, ack_wait=lease,
            max_ack_pending=window, inactive_threshold=lease, mem_storage=True, deliver_policy=policy, opt_start_seq=start,
        )  # fmt: skip
        await self._connection.steadily(lambda: self._connection.js.add_consumer(DOWN, config))

    async def end_consumer(self, stream: str, name: str) -> None:
        """No such consumer delivers any longer."""
        try:
            await self._connection.steadily(lambda: self._connection.js.delete_consumer(stream, name))
        except nats.js.errors.NotFoundError:
            return

    async def listing(self, stream: str, pattern: str) -> list[str]:
        """The subjects of a stream that match."""
        info = await self._connection.steadily(lambda: self._connection.js.stream_info(stream, subjects_filter=pattern))
        return list(info.state.subjects or {})

    async def read(self, stream: str, subject: str) -> tuple[bytes, int]:
        """The message of a subject, and its sequence number.

        Raises nats.js.errors.NotFoundError when there is none.
        """
        found = await self._connection.steadily(
            lambda: self._connection.js.get_msg(stream, subject=subject, direct=True)
        )
        return found.data or b"", found.seq or 0

    async def purge(self, stream: str, pattern: str) -> None:
        """Delete the messages of a stream that match."""
        await self._connection.steadily(lambda: self._connection.js.purge_stream(stream, subject=pattern))

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete one message."""
        try:
            await self._connection.steadily(lambda: self._connection.js.delete_msg(stream, sequence))
        except nats.js.errors.APIError:
            return  # it is gone already

    async def _make(self, config: StreamConfig) -> None:
        config = config.evolve(storage=StorageType.FILE, num_replicas=1, discard=DiscardPolicy.NEW)
        try:
            await self._connection.steadily(lambda: self._connection.js.add_stream(config))
        except nats.js.errors.BadRequestError:  # it is there with other settings, say of another version of this code
            await self._connection.steadily(lambda: self._connection.js.update_stream(config))


def _once(name: str, subject: str) -> StreamConfig:
    """A stream that keeps the first message of every subject."""
    return StreamConfig(
        name=name, subjects=[subject], allow_direct=True, max_msgs_per_subject=1, discard_new_per_subject=True
    )


async def together(works: Iterable[Callable[[], Awaitable[None]]]) -> None:
    """Do all, several at a time; the first failure is raised."""
    left = iter(works)

    async def worker() -> None:
        for work in left:
            await work()

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))
