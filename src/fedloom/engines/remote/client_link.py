"""A client's end of a federation on NATS JetStream."""

from __future__ import annotations

import asyncio
import logging
import queue
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as BrokerError
from pydantic import ValidationError

from fedloom.codec.wire import Buffer
from fedloom.engines.remote import subjects
from fedloom.engines.remote.connection import Connection, Times
from fedloom.engines.remote.link import Answer, Ask, Blob
from fedloom.engines.remote.notes import CHUNK_FOLLOWS, CHUNKS_COME, Beat, News, Wanted
from fedloom.engines.remote.said import Said
from fedloom.engines.remote.signing import Forged, Signer, unseal, verify_key
from fedloom.engines.remote.transfer import WINDOW, Assembly, Refused, chunk, chunks, windowed
from fedloom.errors import RunError

__all__ = ["NatsClientLink"]

log = logging.getLogger(__name__)

_POLL = 0.25  # seconds between looks at whether the connection has failed for good, while there is nothing to do


@dataclass
class _Held:
    """An ask that is not answered, and the message whose lease is renewed until it is."""

    ask: Ask
    message: Msg


class NatsClientLink:
    """A client's end; `options` are those of `nats.connect`.

    folder: where the last answers are kept until they have arrived, so that work is not done twice; limit: the largest blob that is
    fetched, in bytes; coordinator: its public nkey.
    Raises UsageError when the broker refuses this client, RunError when none answers.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        federation: str,
        client: str,
        seed: str,
        coordinator: str,
        folder: Path,
        lease: float = 30.0,
        limit: int = 1 << 33,
    ) -> None:
        self._client, self._federation, self._limit = client, federation, limit
        self._signer, self._coordinator = Signer(federation, seed), verify_key(coordinator)
        self._said = Said(folder, client, self._signer)
        self._lock = threading.Lock()
        self._asks = queue.Queue[str]()  # not a SimpleQueue, which a signal can make wait for ever (CPython 3.11)
        self._held: dict[str, _Held] = {}
        self._withdrawn: dict[str, None] = {}
        self._connection = Connection(options, client, Times(lease))
        try:
            self._connection.call(self._start())
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """End the connection; what was asked goes on with the next link of this client."""
        self._connection.close()

    def next(self, timeout: float) -> Ask | None:
        """The next ask, its signature verified; None when `timeout` seconds pass. Its lease is renewed until it is answered."""
        until = time.monotonic() + timeout
        while True:
            self._connection.check()
            try:
                digest = self._asks.get(timeout=max(0.0, min(_POLL, until - time.monotonic())))
            except queue.Empty:
                if time.monotonic() >= until:
                    return None
                continue
            with self._lock:
                held = self._held.get(digest)
            if held is not None:
                return held.ask

    def get(self, blob: Blob) -> Buffer:
        """Fetch a blob, its digest verified; it cannot be written to.

        Raises Refused when it is too large or not what was announced, RunError when it cannot be had.
        """
        self._connection.check()
        arriving = Assembly(blob, self._limit, where=f"client {self._client!r}")
        if arriving.left:
            self._connection.call(self._fetch(blob, arriving))
        return arriving.finish().toreadonly()

    def cancelled(self, ask: Ask) -> bool:
        """Whether the coordinator has withdrawn it."""
        self._connection.check()
        return ask.digest in self._withdrawn

    def answer(self, answer: Answer, content: bytes | None = None) -> None:
        """Sign and hand over an answer, its content first; nothing is sent to an ask that was withdrawn.

        Raises RunError when the ask was never given out, or the broker does not take the answer.
        """
        self._connection.check()
        with self._lock:
            held = self._held.get(answer.ask)
        if answer.ask in self._withdrawn:
            log.info("the answer to %s is not sent: the ask has been withdrawn", answer.id)
            return
        if held is None or answer.id != held.ask.id or answer.client != self._client:
            raise RunError(f"there is no ask {answer.id} that waits for this answer", where=f"client {self._client!r}")
        blob = None
        if content is not None:
            digest = sha256(content).hexdigest()
            blob = Blob(key=self._signer.name(self._client, digest), sha256=digest, size=len(content))
        answer = answer.model_copy(update={"content": blob})
        sealed = self._signer.seal("answer", self._client, answer.model_dump_json().encode())
        self._said.keep(answer.ask, sealed, content)
        try:
            self._connection.call(self._send(held.ask, answer, sealed, content))
        except RunError:
            self._said.drop(answer.ask)
            raise

    # -- on the loop

    async def _start(self) -> None:
        inbox = subjects.inbox(self._client)
        await self._connection.subscribe(f"{inbox}.news", self._on_news)
        await self._connection.subscribe(f"{inbox}.ask", self._on_ask)
        self._connection.spawn(self._connection.every(self._connection.times.beat, self._beat), "beats")

    async def _beat(self) -> None:
        """Say that we are here and what we work on, and renew the leases of it."""
        with self._lock:
            held = list(self._held.items())
        for _, each in held:
            await each.message.in_progress()
        beat = Beat(busy=[(each.ask.id, digest) for digest, each in held]).model_dump_json().encode()
        await self._connection.tell(f"fl.here.{self._client}", self._signer.seal("beat", self._client, beat))

    async def _on_ask(self, message: Msg) -> None:
        try:
            ask = self._read_ask(message)
        except (Forged, ValidationError) as error:
            log.warning("a message on %s was refused: %s", message.subject, error)
            if message.reply:
                await message.term()
            return
        digest = ask.digest
        self._withdrawn.pop(digest, None)  # it is asked again
        with self._lock:
            known = digest in self._held
            self._held[digest] = _Held(ask, message)
        if known:
            return  # delivered again while we work on it: from now on this message's lease is renewed
        if (said := await asyncio.to_thread(self._said.find, digest)) is not None:
            log.info("%s has been answered before: the same is said again", ask.id)
            answer, sealed, content = said
            self._connection.spawn(self._send(ask, answer, sealed, content), f"the answer to {ask.id} again")
        else:
            self._asks.put(digest)

    def _read_ask(self, message: Msg) -> Ask:
        if message.headers or not message.subject.startswith(f"fl.ask.{self._client}."):
            raise Forged("not an ask", why="it is a copy of something else")
        content = unseal(self._coordinator, self._federation, "ask", self._client, message.data)
        ask = Ask.model_validate_json(content)
        if ask.client != self._client or ask.model_dump_json().encode() != content:
            raise Forged("not an ask to this client")
        return ask

    async def _on_news(self, message: Msg) -> None:
        """Asks that have been withdrawn."""
        try:
            content = unseal(self._coordinator, self._federation, "news", self._client, message.data)
            news = News.model_validate_json(content)
        except (Forged, ValidationError) as error:
            log.warning("a message on %s was refused: %s", message.subject, error)
            return
        for digest in news.withdrawn:
            self._withdrawn[digest] = None
            with self._lock:
                held = self._held.pop(digest, None)
            if held is not None:
                log.info("%s has been withdrawn", held.ask.id)
                await held.message.ack()
        while len(self._withdrawn) > 1024:
            self._withdrawn.pop(next(iter(self._withdrawn)))

    async def _send(self, ask: Ask, answer: Answer, sealed: bytes, content: bytes | None) -> None:
        """The chunks, then the answer; when the broker holds it, the ask is done. Nothing more is sent once it is withdrawn."""
        digest = ask.digest

        async def move(index: int) -> None:
            if digest not in self._withdrawn:
                await self._connection.publish(f"{subject}.{index}", chunk(content or b"", index))

        if answer.content is not None and content:
            subject = subjects.upload_subject(ask, answer.content.key)
            await windowed(range(chunks(len(content))), move, self._connection.times.beat)
        if digest in self._withdrawn:
            log.info("the answer to %s is not sent: the ask has been withdrawn", ask.id)
            self._said.drop(digest)
            return
        await self._connection.publish(subjects.answer_subject(ask), sealed)
        await asyncio.to_thread(self._said.arrived, digest)
        with self._lock:
            held = self._held.pop(digest, None)
        if held is not None:
            try:
                await held.message.ack()
            except BrokerError as error:  # it will be delivered, and answered from the folder, again
                log.debug("%s is not acknowledged: %r", ask.id, error)

    async def _fetch(self, blob: Blob, arriving: Assembly) -> None:
        """Ask for what is missing until nothing is; a smaller window after every interruption."""
        patience, window, nonce = self._connection.times.patience, WINDOW, secrets.token_hex(16)
        until = time.monotonic() + patience
        refused: list[Refused] = []
        progress = asyncio.Event()

        async def take(message: Msg) -> None:
            try:
                arriving.put(int(message.subject.rpartition(".")[2]), message.data)
            except Refused as error:
                refused.append(error)
            progress.set()
            await message.ack()

        subject = f"{subjects.inbox(self._client)}.down.{nonce}"
        if arriving.left > 1:
            await self._connection.subscribe(subject, take)
        try:
            while arriving.left and not refused:
                before = arriving.left
                wanted = Wanted(sha256=blob.sha256, size=blob.size, first=arriving.missing[0], to=nonce, window=window)
                sealed = self._signer.seal("fetch", self._client, wanted.model_dump_json().encode())
                reply = (await self._connection.request(f"fl.fetch.{self._client}", sealed)).data
                if reply[:1] == CHUNK_FOLLOWS:
                    arriving.put(0, reply[1:])
                elif reply[:1] == CHUNKS_COME:
                    await self._arrivals(arriving, progress, refused)
                else:
                    why = "the coordinator no longer holds it"
                    raise RunError(f"{blob.key} cannot be fetched", where=f"client {self._client!r}", why=why)
                if arriving.left < before:
                    until = time.monotonic() + patience
                elif time.monotonic() > until:
                    raise RunError(
                        f"{blob.key} cannot be fetched", where=f"client {self._client!r}", why="nothing arrives"
                    )
                window = max(1, window // 2)
        finally:
            await self._connection.unsubscribe(subject)
        if refused:
            raise refused[0]

    async def _arrivals(self, arriving: Assembly, progress: asyncio.Event, refused: list[Refused]) -> None:
        """Wait until all has arrived, or until nothing comes for a lease, or the connection breaks."""
        while arriving.left and not refused:
            progress.clear()
            if not await self._connection.happens(progress, self._connection.times.lease):
                return
