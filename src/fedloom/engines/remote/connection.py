"""A connection to the broker that lasts: an asyncio loop in a thread of its own, blocking calls from any other thread.

Beats and acknowledgements go on while the caller trains. What is lost with a connection is said again as soon as there is one; all
that is sent is idempotent. What the broker does not permit, which nats-py only tells a callback, ends the call that wanted it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
import nats.js.errors
import uvloop
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from fedloom.codec.wire import Buffer
from fedloom.engines.remote.link import Unreachable
from fedloom.engines.remote.transfer import CHUNK, WINDOW
from fedloom.errors import FedloomError, RunError, UsageError

__all__ = ["Connection", "Handler", "Times"]

T = TypeVar("T")
Handler = Callable[[Msg], Awaitable[None]]

log = logging.getLogger(__name__)

# nats-py reads a TLS stream as a plain one; asyncio says so at every disconnection
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in str(record.msg))

_STORE_FAILED = 10077  # an error code of JetStream: the stream's own bounds refuse the message
_TRANSIENT = (nats.errors.Error, nats.js.errors.ServiceUnavailableError, OSError, asyncio.TimeoutError)
_LASTING = (nats.js.errors.APIError, nats.errors.MaxPayloadError, nats.errors.BadSubjectError)
_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)


@dataclass(frozen=True)
class Times:
    """Every time setting, in seconds, from one."""

    lease: float
    """After this long without a sign of life a client's ask, or the coordinator's seat, goes to another."""

    @property
    def beat(self) -> float:
        """Between signs of life."""
        return self.lease / 3

    @property
    def pause(self) -> float:
        """Between attempts to reach the broker, or whoever does not answer."""
        return min(0.5, self.lease / 20)

    @property
    def patience(self) -> float:
        """After this long without success a call fails."""
        return 10 * self.lease


class Connection:
    """One party's connection; `options` are those of `nats.connect`.

    Raises UsageError when the broker refuses the party, or is not the one it should be; RunError when none answers in time.
    """

    def __init__(self, options: Mapping[str, Any], party: str, times: Times) -> None:
        self.times, self.party = times, party
        self._options = dict(options)
        self._handlers, self._subscriptions = dict[str, Handler](), dict[str, Subscription]()
        self._listeners: list[Callable[[], Awaitable[None]]] = []
        self._closing, self._last_error = False, "it does not answer"
        self._failure: FedloomError | None = None
        self._denied: dict[str, set[asyncio.Future[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()  # its TLS costs less than asyncio's own
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"link of {party}", daemon=True)
        self._thread.start()
        try:
            self.call(self._open())
        except BaseException:
            self.close()
            raise

    # -- from any thread

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it."""
        if self._closing:
            work.close()
            self.check()
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def check(self) -> None:
        """Raise what has ended this connection for good, if anything has."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise RunError("this link has been closed", where=self.party)

    def close(self) -> None:
        """End the connection and its thread."""
        if self._closing:
            return
        self._closing = True
        try:
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=5)
        except (TimeoutError, nats.errors.Error, OSError) as error:
            log.debug("%s: closing: %r", self.party, error)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()

    # -- on the loop

    @property
    def js(self) -> JetStreamContext:
        """JetStream; a request waits as long as `steadily` lets it."""
        return self._client.jetstream(timeout=self.times.patience)

    def fail(self, error: FedloomError) -> None:
        """End every call, now and later, with this error."""
        if self._failure is None:
            log.error("%s", error)
            self._failure = error
            if not self._failed.done():
                self._failed.set_result(None)

    def spawn(self, work: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
        """Start a task; its failure is logged."""

        async def guarded() -> None:
            try:
                await work
            except FedloomError as error:
                log.warning("%s: %s: %s", self.party, what, error)
            except Exception:  # a task has nobody else to tell
                log.exception("%s: %s failed", self.party, what)

        task = self._loop.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def every(self, seconds: float, act: Callable[[], Awaitable[None]]) -> None:
        """Act now and then, also right after a reconnection."""
        self._listeners.append(act)
        while True:
            try:
                if self._up.is_set():
                    await act()
            except _TRANSIENT as error:
                log.debug("%s: %r", self.party, error)
            await asyncio.sleep(seconds)

    async def subscribe(self, subject: str, handle: Handler) -> None:
        """Hand every message to `handle`, over all connections to come."""
        self._handlers[subject] = handle
        self._subscriptions[subject] = await self.steadily(lambda: self._client.subscribe(subject, cb=handle))
        await self.steadily(self._client.flush)

    async def unsubscribe(self, subject: str) -> None:
        """End a subscription, if there is one."""
        self._handlers.pop(subject, None)
        subscription = self._subscriptions.pop(subject, None)
        if subscription is not None:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as error:
                log.debug("%s: %r", self.party, error)

    async def happens(self, event: asyncio.Event, timeout: float) -> bool:
        """Wait for an event; False when the connection breaks, or time passes, before."""
        waiting = asyncio.ensure_future(event.wait())
        await asyncio.wait({waiting, self._down, self._failed}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        return event.is_set()

    async def tell(self, subject: str, payload: bytes) -> None:
        """Publish without an answer, and only if there is a connection now."""
        if self._up.is_set():
            await self._client.publish(subject, payload)

    async def request(self, subject: str, payload: bytes) -> Msg:
        """Ask until there is an answer."""
        return await self.steadily(lambda: self._client.request(subject, payload, self.times.patience), subject)

    async def publish(self, subject: str, payload: Buffer) -> bool:
        """Store a message; False when its subject is taken in a stream that has one message a subject.

        Raises RunError when the stream is full, or the broker does not permit it.
        """
        try:
            await self.steadily(lambda: self.js.publish(subject, payload), subject)  # type: ignore[arg-type]  # any buffer will do
        except nats.js.errors.APIError as error:
            if "per subject" in (error.description or ""):
                return False
            fix = "free space, or allow more in the broker's configuration and for uploads"
            raise RunError(
                "the broker does not store a message", where=subject, why=error.description, fix=fix
            ) from None
        except nats.errors.MaxPayloadError:
            why = f"it has {len(payload)} bytes"
            raise RunError("a message is larger than the broker takes", where=subject, why=why) from None
        return True

    async def steadily(self, attempt: Callable[[], Awaitable[T]], subject: str = "") -> T:
        """The outcome of an attempt that is made again when the connection breaks, or nobody answers for a lease.

        subject: what the attempt publishes to; that the broker forbids it is an error at once.
        Raises RunError when patience ends.
        """
        until, wait = time.monotonic() + self.times.patience, self.times.lease
        while True:
            await self._online(until)
            task, denied = asyncio.ensure_future(attempt()), self._loop.create_future()
            waiting = self._denied.setdefault(subject.lower(), set())  # nats-py makes the broker's words small
            waiting.add(denied)
            try:
                left = max(0.0, min(wait, until - time.monotonic()))
                ends = {task, denied, self._down, self._failed}
                await asyncio.wait(ends, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if denied.done():
                    raise self._forbidden("publish", subject)
                if task.done():
                    return task.result()
                wait *= 2  # a slow link is not helped by saying it again
            except _LASTING as error:
                if not isinstance(error, nats.js.errors.ServiceUnavailableError) or error.err_code == _STORE_FAILED:
                    raise
                self._last_error = str(error)
            except _TRANSIENT as error:
                self._last_error = str(error) or type(error).__name__
            finally:
                task.cancel()
                waiting.discard(denied)
                if not waiting:
                    self._denied.pop(subject.lower(), None)
            await asyncio.sleep(self.times.pause)

    async def _online(self, until: float) -> None:
        """Wait for a connection."""
        self.check()
        left = until - time.monotonic()
        if left > 0 and not self._up.is_set():
            up = asyncio.ensure_future(self._up.wait())
            await asyncio.wait({up, self._failed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            self.check()
        if until <= time.monotonic():
            fix = "see that the broker and the coordinator run, and can be reached"
            what = f"nothing was achieved for {self.times.patience:.0f} seconds"
            raise Unreachable(what, where=self.party, why=self._last_error, fix=fix)

    def _forbidden(self, verb: str, subject: str) -> UsageError:
        fix = "renew its kit, or the broker's configuration"
        return UsageError(f"the broker does not let {self.party!r} {verb} to {subject}", fix=fix)

    # -- the connection itself

    async def _open(self) -> None:
        """Connect, within a lease."""
        if not hasattr(self, "_up"):
            self._up, self._down, self._failed = asyncio.Event(), self._loop.create_future(), self._loop.create_future()
        self._client = Client()
        times = self.times
        settings = self._options | {
            "error_cb": self._on_error, "disconnected_cb": self._on_down, "reconnected_cb": self._on_up,
            "closed_cb": self._on_closed, "allow_reconnect": True, "max_reconnect_attempts": -1,
            "reconnect_time_wait": times.pause, "connect_timeout": max(2.0, times.beat), "ping_interval": times.beat,
            "max_outstanding_pings": 2, "pending_size": 4 * WINDOW * CHUNK, "name": self.party,
        }  # fmt: skip
        opening = asyncio.ensure_future(self._client.connect(**settings))
        try:
            await asyncio.wait(
                {opening, self._failed}, timeout=max(times.lease, 3.0), return_when=asyncio.FIRST_COMPLETED
            )
            self.check()
            if not opening.done():
                servers = self._options.get("servers", "")
                where = servers if isinstance(servers, str) else ", ".join(servers)
                fix = "start the broker, or see that its address and port are right and can be reached from here"
                raise RunError("no broker answers", where=where, why=self._last_error, fix=fix)
            opening.result()
        except nats.errors.Error as error:
            raise RunError("no broker answers", why=str(error)) from error
        finally:
            opening.cancel()
        self._up.set()

    async def _reopen(self) -> None:
        """A new connection in place of one that the broker ended for good, with what it was subscribed to."""
        while not self._closing:
            try:
                await self._open()
            except RunError as error:
                log.warning("%s: %s", self.party, error)
                await asyncio.sleep(self.times.pause)
                continue
            for subject, handle in self._handlers.items():
                self._subscriptions[subject] = await self._client.subscribe(subject, cb=handle)
            await self._on_up()
            return

    async def _close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if hasattr(self, "_client"):
            try:
                await self._client.close()
            except RuntimeError as error:  # uvloop's word for what is left to be sent on a transport that is gone
                log.debug("%s: closing: %r", self.party, error)
        others = asyncio.all_tasks(self._loop) - {asyncio.current_task(self._loop)}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _on_down(self) -> None:
        self._up.clear()
        if not self._down.done():
            self._down.set_result(None)
        if not self._closing:
            log.info("%s: the connection to the broker is lost", self.party)

    async def _on_up(self) -> None:
        self._down = self._loop.create_future()
        self._up.set()
        log.info("%s: connected to the broker again", self.party)
        for act in self._listeners:
            self.spawn(_call(act), "after a reconnection")

    async def _on_closed(self) -> None:
        if not self._closing and self._failure is None:
            await self._on_down()
            self.spawn(self._reopen(), "a new connection")

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        log.debug("%s: %r", self.party, error)
        if isinstance(error, nats.errors.AuthorizationError) or "authorization violation" in str(error).lower():
            fix = "renew its kit; it may have been revoked, or be of another federation"
            self.fail(UsageError(f"the broker does not know the key of {self.party!r}", fix=fix))
        elif isinstance(error, ssl.SSLCertVerificationError):
            fix = "renew the broker's certificate, or the kit; see that the address is one the certificate names"
            self.fail(UsageError("the broker is not that of this federation", why=error.verify_message, fix=fix))
        elif isinstance(error, FileNotFoundError):
            what = f"the secret key of {self.party!r} is gone"
            self.fail(UsageError(what, where=str(error.filename), fix="put its kit back"))
        elif found := _DENIED.search(str(error)):
            verb, subject = found.groups()
            for denied in self._denied.get(subject.lower(), ()):
                if not denied.done():
                    denied.set_result(None)
            if verb.lower() == "subscription":
                known = [each for each in self._handlers if each.lower() == subject.lower()]
                self.fail(self._forbidden("subscribe", known[0] if known else subject))
            else:
                log.error("%s", self._forbidden("publish", subject))


async def _call(act: Callable[[], Awaitable[None]]) -> None:
    await act()
