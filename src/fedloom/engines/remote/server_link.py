"""The coordinator's end of a federation on NATS JetStream."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nacl.signing import VerifyKey
from nats.aio.msg import Msg
from pydantic import ValidationError

from fedloom.codec.wire import Buffer
from fedloom.engines.remote import subjects
from fedloom.engines.remote.blobs import Blobs
from fedloom.engines.remote.connection import Connection, Times
from fedloom.engines.remote.lease import Lease
from fedloom.engines.remote.link import Answer, Ask, Blob, Presence
from fedloom.engines.remote.notes import Beat, News, Wanted
from fedloom.engines.remote.signing import Forged, Signer, unseal, verify_key
from fedloom.engines.remote.streams import Streams, together
from fedloom.engines.remote.subjects import ASK, COORDINATOR
from fedloom.errors import RunError

__all__ = ["NatsServerLink"]

log = logging.getLogger(__name__)


class NatsServerLink:
    """The coordinator's end; `options` are those of `nats.connect`.

    clients: public nkeys by name; lease: seconds after which an ask of a silent client is told again, and after which the seat of a
    silent coordinator may be taken; holder: see `Lease`; upload_bytes: what the broker keeps of one client at most, set aside.
    Raises UsageError when the broker refuses the coordinator, RunError when none answers or another coordinator is at work.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        federation: str,
        seed: str,
        clients: Mapping[str, str],
        lease: float = 30.0,
        holder: str | None = None,
        upload_bytes: int = 1 << 30,
    ) -> None:
        self._federation, self._signer = federation, Signer(federation, seed)
        self._keys = _keys(clients)
        self._lock = threading.Condition()
        self._live: dict[tuple[str, str], str] = {}  # the subjects of asks that are neither withdrawn nor forgotten
        self._arrived: dict[str, Answer] = {}  # by the digest of the ask
        self._given: dict[str, Ask] = {}  # the asks whose answers have been returned
        self._digests: dict[int, tuple[Ask, str]] = {}
        self._seen: dict[str, tuple[float, str | None]] = {}
        self._asked = set(self._keys)  # who may have something stored that can be forgotten
        self._replies = f"{subjects.inbox(COORDINATOR)}.{secrets.token_hex(8)}"
        self._connection = Connection(options, COORDINATOR, Times(lease))
        self._lease = Lease(self._connection, self._signer, holder)
        self._streams = Streams(self._connection, upload_bytes)
        self._blobs = Blobs(self._connection, self._streams, self._signer)
        try:
            self._connection.call(self._start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the seat up and end the connection; what was asked stays asked."""
        try:
            self._connection.call(self._lease.release())
        except Exception as error:  # it lapses by itself
            log.debug("the lease is not released: %r", error)
        self._connection.close()

    @property
    def clients(self) -> Sequence[str]:
        """The names of all who are enrolled."""
        return sorted(self._keys)

    def enrol(self, clients: Mapping[str, str]) -> None:
        """From now on these are the federation's clients, public nkeys by name: others are neither asked nor believed."""
        self._lease.require()
        former, self._keys = self._keys, _keys(clients)
        with self._lock:
            self._asked |= self._keys.keys()
            self._seen = {name: seen for name, seen in self._seen.items() if name in self._keys}
        self._connection.call(self._make(self._keys.keys() - former.keys()))

    def listen(self, subject: str, answer: Callable[[bytes], bytes]) -> None:
        """Answer requests on a subject, each in a thread of its own."""

        async def heard(message: Msg) -> None:
            await message.respond(await asyncio.to_thread(answer, message.data))

        self._connection.call(self._connection.subscribe(subject, heard))

    # -- what the engine calls

    def put(self, key: str, content: bytes) -> Blob:
        """Store what clients fetch; the same bytes are stored once."""
        self._lease.require()
        blob = self._blobs.describe(key, content)
        self._connection.call(self._blobs.store(blob, content))
        return blob

    def ask(self, asks: Sequence[Ask]) -> None:
        """Hand asks over durably: each waits for its client, and is told again when the client's lease ends unanswered."""
        self._lease.require()
        unknown = sorted({ask.client for ask in asks} - set(self._keys))
        if unknown:
            raise RunError(f"{unknown[0]!r} is not a client of this federation", fix="add it to the federation first")
        self._connection.call(self._ask(asks))

    def answers(self, asks: Sequence[Ask], timeout: float) -> list[Answer]:
        """The verified answers to these asks that have not been returned before, at least one; none when `timeout` seconds pass."""
        until = time.monotonic() + timeout
        wanted = {self._digest(ask): ask for ask in asks}
        while True:
            self._lease.require()
            with self._lock:
                new = [digest for digest in wanted if digest in self._arrived and digest not in self._given]
                for digest in [d for d in new if self._arrived[d].id != wanted[d].id]:
                    log.warning(
                        "an answer of %s was refused: it is not to %s", wanted[digest].client, wanted[digest].id
                    )
                    del self._arrived[digest]
                    new.remove(digest)
                found = [self._arrived[digest] for digest in new]
                self._given.update((digest, wanted[digest]) for digest in new)
                left = until - time.monotonic()
                if found or left <= 0:
                    return found
                self._lock.wait(min(left, self._connection.times.beat))

    def fetch(self, answer: Answer, limit: int) -> Buffer:
        """An answer's content, its signature, size (at most `limit`) and digest verified.

        Raises Refused when it is too large or not what was announced, RunError when the answer is not one that was returned.
        """
        self._lease.require()
        ask = self._given.get(answer.ask)
        where = f"client {answer.client!r}, {answer.id}"
        if ask is None or self._arrived.get(answer.ask) != answer or answer.content is None:
            raise RunError("there is no such answer with content", where=where)
        return self._connection.call(self._blobs.collect(ask, answer.content, limit, where))

    def cancel(self, asks: Sequence[Ask]) -> None:
        """Withdraw asks that are not answered; later answers are refused and logged."""
        self._lease.require()
        self._connection.call(self._cancel([(ask.client, self._digest(ask)) for ask in asks]))

    def forget(self, run: str, before: int) -> None:
        """Free what the run stored for rounds before this one."""
        self._lease.require()
        with self._lock:
            old = [digest for digest, ask in self._given.items() if ask.run == run and ask.round < before]
            for digest in old:
                del self._given[digest]
                self._arrived.pop(digest, None)
            self._digests.clear()
        self._connection.call(self._forget(subjects.token(run), before))

    def presence(self) -> Mapping[str, Presence]:
        """Every client that is online, by name: heard of within a lease."""
        self._connection.check()
        now, lease = time.monotonic(), self._connection.times.lease
        with self._lock:
            seen = list(self._seen.items())
        return {
            client: Presence(client=client, seen=now - at, busy=busy)
            for client, (at, busy) in seen
            if now - at <= lease and client in self._keys
        }

    # -- on the loop

    async def _start(self) -> None:
        await self._lease.take()
        await self._streams.make_common()
        for subject in await self._streams.listing(ASK, "fl.ask.>"):
            parts = subject.split(".")
            self._live[parts[2], parts[-1]] = subject
        await self._connection.subscribe(self._replies, self._on_answer)
        await self._connection.subscribe("fl.here.*", self._on_beat)
        await self._connection.subscribe("fl.fetch.*", self._on_wanted)
        await self._make(self._keys)

    async def _make(self, clients: Iterable[str]) -> None:
        await together(lambda c=c: self._streams.make_for(c, self._replies) for c in clients)  # type: ignore[misc]

    def _digest(self, ask: Ask) -> str:
        """The digest of an ask, worked out once: asks do not change."""
        known = self._digests.get(id(ask))
        if known is None or known[0] is not ask:
            known = self._digests[id(ask)] = (ask, ask.digest)
        return known[1]

    async def _ask(self, asks: Sequence[Ask]) -> None:
        await self._blobs.use(asks)

        async def say(ask: Ask) -> None:
            digest = self._digest(ask)
            name = self._signer.name(ask.client, digest)
            subject = subjects.ask_subject(ask, name)
            with self._lock:
                self._live[ask.client, name] = subject
                self._asked.add(ask.client)
            content = ask.model_dump_json().encode()
            await self._connection.publish(subject, self._signer.seal("ask", ask.client, content))

        await together(lambda ask=ask: say(ask) for ask in asks)  # type: ignore[misc]

    async def _cancel(self, which: Sequence[tuple[str, str]]) -> None:
        told: dict[str, list[str]] = {}

        async def withdraw(client: str, digest: str) -> None:
            with self._lock:
                if digest in self._given:
                    return
                self._arrived.pop(digest, None)
                subject = self._live.pop((client, self._signer.name(client, digest)), None)
            if subject is not None:
                told.setdefault(client, []).append(digest)
                await self._streams.purge(ASK, subject)

        await together(lambda each=each: withdraw(*each) for each in which)  # type: ignore[misc]
        for client, digests in told.items():
            await self._tell(client, digests)

    async def _tell(self, client: str, withdrawn: list[str]) -> None:
        news = News(withdrawn=withdrawn[:4096]).model_dump_json().encode()
        await self._connection.tell(f"{subjects.inbox(client)}.news", self._signer.seal("news", client, news))

    async def _forget(self, run: str, before: int) -> None:
        """Purge by round: what is of an earlier round of this run, and what is of no round, which only a forger stores."""

        async def free(stream: str, pattern: str) -> None:
            stale = set()
            for subject in await self._streams.listing(stream, pattern):
                where = subjects.round_of(subject)
                if where is None:
                    stale.add(subject)
                elif where[0] == run and where[1] < before:
                    stale.add(".".join(subject.split(".")[:5]) + ".>")
            for each in stale:
                await self._streams.purge(stream, each)

        with self._lock:
            asked, self._asked = self._asked & set(self._keys), set()
            for place, subject in list(self._live.items()):
                where = subjects.round_of(subject)
                if where is None or (where[0] == run and where[1] < before):
                    del self._live[place]
                else:
                    self._asked.add(place[0])
        await free(ASK, "fl.ask.>")
        await together(lambda c=c: free(subjects.answers_of(c), f"fl.ans.{c}.>") for c in asked)  # type: ignore[misc]
        await together(lambda c=c: free(subjects.uploads_of(c), f"fl.up.{c}.>") for c in asked)  # type: ignore[misc]
        await self._blobs.forget(run, before)

    async def _on_answer(self, message: Msg) -> None:
        """Take an answer in; one that is not what it claims, or that nobody waits for, is deleted."""
        client = message.subject.split(".")[2] if message.subject.startswith("fl.ans.") else ""
        if client not in self._keys or not message.reply:
            log.warning("a message on %s was refused: it is of no client", message.subject)
            return
        try:
            answer = self._read_answer(client, message)
            if not await self._is_live(client, answer.ask):
                raise Forged(
                    f"the answer to {answer.id} is late", where=f"client {client!r}", why="nobody waits for it"
                )
        except (Forged, ValidationError) as error:
            log.warning("an answer on %s was refused: %s", message.subject, error)
            await self._streams.delete(subjects.answers_of(client), message.metadata.sequence.stream)
        else:
            with self._lock:
                self._arrived.setdefault(answer.ask, answer)
                self._lock.notify_all()
        await message.ack()

    def _read_answer(self, client: str, message: Msg) -> Answer:
        if message.headers and any(name.lower().startswith("nats-") for name in message.headers):
            raise Forged("not an answer", where=f"client {client!r}", why="it is a copy of another stream's message")
        content = unseal(self._keys[client], self._federation, "answer", client, message.data)
        answer = Answer.model_validate_json(content)
        if answer.client != client:
            raise Forged(
                f"an answer of {answer.client!r}", where=f"client {client!r}", why="its key signs for itself only"
            )
        return answer

    async def _is_live(self, client: str, digest: str) -> bool:
        """Whether an ask has been neither withdrawn nor forgotten; the broker knows those of a former coordinator."""
        name = self._signer.name(client, digest)
        with self._lock:
            if (client, name) in self._live:
                return True
        for subject in await self._streams.listing(ASK, f"fl.ask.{client}.*.*.*.*.{name}"):
            with self._lock:
                self._live[client, name] = subject
            return True
        return False

    async def _on_beat(self, message: Msg) -> None:
        """A sign of life; a client that works on what is withdrawn is told, should it have missed that."""
        client = message.subject.rpartition(".")[2]
        try:
            beat = Beat.model_validate_json(self._open("beat", client, message))
        except (Forged, ValidationError) as error:
            log.warning("a message on %s was refused: %s", message.subject, error)
            return
        with self._lock:
            self._seen[client] = (time.monotonic(), beat.busy[0][0] if beat.busy else None)
        idle = [digest for _, digest in beat.busy if not await self._is_live(client, digest)]
        if idle:
            await self._tell(client, idle)

    async def _on_wanted(self, message: Msg) -> None:
        """A client wants a blob: the only chunk at once, or a consumer that delivers them to its inbox, and nowhere else."""
        client = message.subject.rpartition(".")[2]
        try:
            wanted = Wanted.model_validate_json(self._open("fetch", client, message))
        except (Forged, ValidationError) as error:
            log.warning("a message on %s was refused: %s", message.subject, error)
            return
        if not message.reply.startswith((f"{subjects.inbox(client)}.", "_R_.")):  # _R_: of an account of its own
            log.warning("a message on %s was refused: its reply is to go to %s", message.subject, message.reply)
            return
        self._connection.spawn(self._serve(client, wanted, message.reply), f"a blob for {client}")

    async def _serve(self, client: str, wanted: Wanted, reply: str) -> None:
        await self._connection.tell(reply, await self._blobs.offer(client, wanted))

    def _open(self, direction: Any, client: str, message: Msg) -> bytes:
        if client not in self._keys:
            raise Forged(f"{client!r} is not a client of this federation")
        return unseal(self._keys[client], self._federation, direction, client, message.data)


def _keys(clients: Mapping[str, str]) -> dict[str, VerifyKey]:
    return {name: verify_key(public) for name, public in clients.items()}
