"""Shared by the tests of the links: a federation with its broker, and both ends of its links."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from federation_tools import kit_of, new_federation, started

from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.kit import connect_options
from fedloom.engines.remote.link import Answer, Ask
from fedloom.engines.remote.server_link import NatsServerLink

LEASE = 3.0
PATIENCE = 30.0
"""Seconds after which what was awaited will not come."""


class Place:
    """A federation of `north` and `south`; everything that is opened is closed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = new_federation(folder)
        self.broker = started(self.federation)
        self._open: list[Any] = []

    def server(self, **changes: Any) -> NatsServerLink:
        """The coordinator's end."""
        kit = kit_of(self.federation, "coordinator")
        settings: dict[str, Any] = {"federation": kit.id, "seed": kit.seed(), "clients": kit.clients, "lease": LEASE}
        settings["upload_bytes"] = 1 << 28
        link = NatsServerLink(connect_options(kit), **(settings | changes))
        self._open.append(link)
        return link

    def client(self, name: str, **changes: Any) -> NatsClientLink:
        """A client's end."""
        kit = kit_of(self.federation, name)
        settings: dict[str, Any] = {"federation": kit.id, "client": name, "seed": kit.seed(), "lease": LEASE}
        settings |= {"coordinator": kit.coordinator, "folder": self.folder / f"said-{name}"}
        options = changes.pop("options", None) or connect_options(kit)
        link = NatsClientLink(options, **(settings | changes))
        self._open.append(link)
        return link

    def kill_broker(self) -> None:
        """As a crash would."""
        pid = self.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.broker.stop()

    def close(self) -> None:
        """End everything."""
        for link in self._open:
            link.close()
        self.broker.stop()


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Place]:
    """A place, closed again."""
    place = Place(folder)
    try:
        yield place
    finally:
        place.close()


def ask_to(client: str, round: int = 1, **changes: Any) -> Ask:
    """An ask to train."""
    return Ask(**({"run": "r.1", "round": round, "kind": "train", "client": client, "facts": {"lr": 0.1}} | changes))


def answer_to(ask: Ask, **changes: Any) -> Answer:
    """An answer to an ask."""
    said = {"id": ask.id, "ask": ask.digest, "client": ask.client, "status": "ok", "facts": {"loss": 1.5}}
    return Answer(**(said | changes))


def wait_for(true: Callable[[], Any], what: str = "") -> Any:
    """What becomes true."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if found := true():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what or true} did not become true")


def gather(server: NatsServerLink, asks: Sequence[Ask]) -> dict[str, Answer]:
    """An answer to each ask, by client."""
    found: dict[str, Answer] = {}
    until = time.monotonic() + PATIENCE
    while len(found) < len(asks):
        assert time.monotonic() < until, f"answers of {sorted(found)} only"
        found |= {answer.client: answer for answer in server.answers(asks, 1.0)}
    return found


def take(client: Any) -> Ask:
    """A client's next ask."""
    ask = client.next(PATIENCE)
    assert ask is not None, "no ask came"
    return ask
