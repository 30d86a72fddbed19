"""The coordinator's seat: one holder at a time, by compare-and-set on a key of the broker, renewed while it lives.

No clocks are compared. A holder trusts its seat for one lease after it began its last renewal that succeeded; another takes the
seat only after it saw no renewal for a whole lease. So the former has stopped by itself when the latter begins. One that finds
its seat taken stops for good.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from typing import Any

import nats.js.errors
from nacl.signing import VerifyKey
from nats.js.kv import KeyValue

from fedloom.engines.remote.connection import Connection
from fedloom.engines.remote.link import Unreachable
from fedloom.engines.remote.signing import Forged, Signer, unseal
from fedloom.engines.remote.subjects import COORDINATOR
from fedloom.errors import FedloomError, RunError

__all__ = ["Lease"]

BUCKET = "fl_state"

log = logging.getLogger(__name__)


class Lease:
    """The seat of one federation's coordinator.

    holder: a name that only one process can have at a time, say by a lock on a file; a former process of that name is known to be
    dead, so that its seat is taken at once. None: a name nobody else has.
    """

    def __init__(self, connection: Connection, signer: Signer, holder: str | None) -> None:
        self._connection, self._signer, self._times = connection, signer, connection.times
        self._verify: VerifyKey = signer.verify_key
        self._me = secrets.token_hex(8)
        self._holder = holder or self._me
        self._key = f"lease.{signer.name(COORDINATOR, 'lease')}"
        self._keeping: asyncio.Task[None] | None = None
        self._revision = 0
        self._until = 0.0
        self._renewed = threading.Condition()

    async def take(self) -> None:
        """Take the seat, waiting up to a lease for one who may be dead.

        Raises RunError when another coordinator is at work.
        """
        self._bucket: KeyValue = await self._connection.steadily(self._open)
        seen, since = -1, 0.0
        while True:
            now = time.monotonic()
            revision, value = await self._read()
            if revision != seen:
                if seen >= 0 and value is not None and not value["released"] and value["by"] != self._me:
                    raise self._taken(value)
                seen, since = revision, time.monotonic()
            if self._is_free(revision, value, now - since) and await self._write(revision):
                self._keeping = self._connection.spawn(self._keep(), "the lease")
                return
            await asyncio.sleep(self._times.pause)

    def _is_free(self, revision: int, value: dict[str, Any] | None, unchanged: float) -> bool:
        if value is None:  # what no coordinator wrote, whoever holds the seat will write over
            return revision == 0 or unchanged > self._times.lease
        if value["released"] or self._me == value["by"] or self._holder == value["holder"]:
            return True
        return unchanged > max(self._times.lease, float(value["lease"]))

    def _taken(self, value: dict[str, Any]) -> RunError:
        why = f"{value['holder']} renews its lease of {value['lease']:g} seconds"
        fix = "stop it first, or wait until it has ended"
        return Unreachable("another coordinator is at work", where=self._signer.federation, why=why, fix=fix)

    async def _write(self, revision: int) -> bool:
        """Write the key unless somebody else has since; the seat is ours for a lease from when we began."""
        began = 0.0

        async def attempt() -> int:
            nonlocal began
            began = time.monotonic()
            return await self._put(revision)

        try:
            self._revision = await self._connection.steadily(attempt)
        except nats.js.errors.KeyWrongLastSequenceError:
            return False
        with self._renewed:
            self._until = began + self._times.lease
            self._renewed.notify_all()
        return True

    async def _keep(self) -> None:
        """Renew for as long as the seat is ours."""
        while True:
            await asyncio.sleep(max(0.0, min(self._times.beat, self._until - time.monotonic())))
            try:
                while not await self._write(self._revision):
                    self._revision, value = await self._read()
                    if value is not None and value["by"] != self._me:
                        self._connection.fail(self._taken(value))
                        with self._renewed:
                            self._renewed.notify_all()
                        return
            except RunError as error:
                log.warning("%s", error)
                self._connection.check()

    def require(self) -> None:
        """Go on only with the seat: wait while it may have lapsed.

        Raises RunError when it has been taken over, or the broker is away for too long.
        """
        with self._renewed:
            held = self._renewed.wait_for(self._settled, self._times.patience)
        self._connection.check()
        if not held:
            raise Unreachable(
                "the coordinator's lease has lapsed", why="the broker cannot be reached", fix="start the broker"
            )

    async def release(self) -> None:
        """Give the seat up, so that the next need not wait."""
        if self._keeping is not None:
            self._keeping.cancel()
            if self._until > time.monotonic():
                self._until = 0.0
                await asyncio.wait_for(self._put(self._revision, released=True), self._times.beat)

    def _settled(self) -> bool:
        try:
            self._connection.check()
        except FedloomError:  # raised by whoever waits
            return True
        return time.monotonic() < self._until

    async def _open(self) -> KeyValue:
        try:
            return await self._connection.js.key_value(BUCKET)
        except nats.js.errors.NotFoundError:
            return await self._connection.js.create_key_value(bucket=BUCKET, history=1, storage="file")

    async def _read(self) -> tuple[int, dict[str, Any] | None]:
        """The key's revision (0: none) and what a coordinator wrote there; None when nobody of this federation did."""
        try:
            entry = await self._connection.steadily(lambda: self._bucket.get(self._key))
        except nats.js.errors.KeyNotFoundError:
            return 0, None
        try:
            content = unseal(self._verify, self._signer.federation, "lease", COORDINATOR, entry.value or b"")
        except Forged as error:
            log.warning("the lease was overwritten: %s", error)
            return entry.revision or 0, None
        value: dict[str, Any] = json.loads(content)
        return entry.revision or 0, value

    async def _put(self, revision: int, *, released: bool = False) -> int:
        value = {"by": self._me, "holder": self._holder, "lease": self._times.lease, "released": released}
        sealed = self._signer.seal("lease", COORDINATOR, json.dumps(value).encode())
        if revision == 0:
            return await self._bucket.create(self._key, sealed)
        return await self._bucket.update(self._key, sealed, last=revision)
