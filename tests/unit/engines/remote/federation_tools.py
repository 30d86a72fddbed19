"""Shared by the tests of identity and broker: a federation on a free port, and connections that remember what was refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from fedloom.engines.remote.broker import Broker
from fedloom.engines.remote.definition import read_plan
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.engines.remote.kit import Kit, connect_options, read_kit

PATIENCE = 10.0
"""Seconds after which what was awaited will not come."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_federation(
    folder: Path, *, name: str = "hospitals", clients: str = "[north, south]", more: str = ""
) -> FederationFolder:
    """A federation whose broker listens on 127.0.0.1 alone."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "fed.yaml"
    plan.write_text(f"name: {name}\nbroker: {{host: 127.0.0.1, port: {free_port()}{more}}}\nclients: {clients}\n")
    return FederationFolder.create(read_plan(plan), folder / name, folder)


def kit_of(federation: FederationFolder, name: str) -> Kit:
    """A party's kit."""
    return read_kit(federation.path / "kits" / name)


def started(federation: FederationFolder) -> Broker:
    """Its broker, running."""
    broker = Broker(kit_of(federation, "coordinator"))
    broker.start()
    return broker


class Node:
    """A connection of one party, and the errors that the broker told it of."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.errors: list[str] = []
        self.disconnected = 0

    async def told(self) -> list[str]:
        """The errors so far, once the broker has worked through all that was sent."""
        await self.flush()
        await asyncio.sleep(0.01)
        return self.errors

    async def flush(self) -> None:
        """Wait until the broker has seen all that was said; nats-py's first ping may overtake what is still buffered."""
        for _ in range(2):
            await self.client.flush(int(PATIENCE))

    async def ask(self, subject: str, content: bytes = b"", *, count: int = 1) -> list[Any]:
        """Publish with a reply to an inbox of its own, and wait for so many replies."""
        box = self.client.new_inbox()
        subscription = await self.client.subscribe(box)
        await self.client.publish(subject, content, reply=box)
        replies = [await subscription.next_msg(PATIENCE) for _ in range(count)]
        await subscription.unsubscribe()
        return replies


async def connect(kit: Kit, **changes: Any) -> Node:
    """Log in with a kit; raises what nats-py raises."""
    node = Node(Client())

    async def on_error(error: Exception) -> None:
        node.errors.append(str(error))

    async def on_disconnect() -> None:
        node.disconnected += 1

    options = {"allow_reconnect": False, "connect_timeout": 5} | connect_options(kit) | changes
    await node.client.connect(error_cb=on_error, disconnected_cb=on_disconnect, **options)
    return node


def refused(kit: Kit, **changes: Any) -> Exception:
    """What the broker answers to a kit that it must not let in."""

    async def attempt() -> Exception:
        try:
            node = await connect(kit, **changes)
        except Exception as error:  # what nats-py raises is what is looked at
            return error
        await node.client.close()
        raise AssertionError("it was let in")

    return asyncio.run(attempt())


def together(scene: Callable[..., Awaitable[None]], *kits: Kit) -> None:
    """Play a scene between the holders of these kits."""

    async def play() -> None:
        nodes: list[Node] = []
        try:
            for kit in kits:
                nodes.append(await connect(kit))
            await asyncio.wait_for(scene(*nodes), 60)
        finally:
            for node in nodes:
                await node.client.close()

    asyncio.run(play())


async def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)
