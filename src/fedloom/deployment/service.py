"""What the processes of a federation are put together from: links from kits, a lock, and parties that come and go."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import filelock

from fedloom.engines.remote.broker import Broker
from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.kit import Kit, connect_options
from fedloom.engines.remote.reach import check_reach
from fedloom.engines.remote.server_link import NatsServerLink
from fedloom.errors import FedloomError, RunError

__all__ = ["Enrolment", "connect", "dial", "locked"]

_LOOK = 2.0  # seconds between looks at the kit and at the broker

log = logging.getLogger("fedloom.service")


def connect(kit: Kit, lease: float, holder: str | None = None) -> NatsServerLink:
    """The coordinator's link.

    Raises UsageError, RunError as `NatsServerLink` does, and for whatever stands between here and the broker.
    """
    check_reach(kit)
    return NatsServerLink(
        connect_options(kit), federation=kit.id, seed=kit.seed(), clients=kit.clients, lease=lease, holder=holder
    )


def dial(kit: Kit, folder: Path, lease: float) -> NatsClientLink:
    """A client's link; `folder` is where it keeps what it has said.

    Raises UsageError, RunError as `NatsClientLink` does, and for whatever stands between here and the broker.
    """
    check_reach(kit)
    folder.mkdir(parents=True, exist_ok=True)
    return NatsClientLink(
        connect_options(kit), federation=kit.id, client=kit.name, seed=kit.seed(), coordinator=kit.coordinator,
        folder=folder, lease=lease,
    )  # fmt: skip


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder to oneself.

    Raises RunError when another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            "another process works in this folder", where=str(folder), fix="end it, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


class Enrolment:
    """Looks after the broker and the kit while it is entered: who is added is let in, who is revoked is cut off.

    A broker that dies is started again.
    """

    def __init__(self, broker: Broker, link: NatsServerLink) -> None:
        self._broker, self._link = broker, link
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="enrolment", daemon=True)

    def __enter__(self) -> Enrolment:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=30)

    def _look(self) -> None:
        while not self._end.wait(_LOOK):
            try:
                if why := self._broker.failure():
                    log.error("the broker has ended (%s); it is started again", why)
                    self._broker.stop()
                    self._broker.start()
                if (kit := self._broker.kit.changed()) is not None:
                    log.info("the kit was issued again: %d clients", len(kit.clients))
                    self._broker.reload(kit)
                    self._link.enrol(kit.clients)
            except FedloomError as error:  # it is looked at again
                log.error("%s", error)
