"""Who may publish and hear what, on a real broker: every line of the table, allowed and denied, and what replies cannot reach."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from federation_tools import Node, connect, kit_of, new_federation, started, together, until
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig

from fedloom.engines.remote.enrolment import FederationFolder


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FederationFolder]:
    """A federation with its broker running, and the streams that a coordinator makes."""
    made = new_federation(tmp_path_factory.mktemp("permissions"))
    broker = started(made)

    async def streams(coordinator: Node) -> None:
        js = coordinator.client.jetstream()
        await js.add_stream(StreamConfig(name="ASK", subjects=["fl.ask.>"]))
        await js.add_stream(StreamConfig(name="DOWN", subjects=["fl.down.>"]))
        for client in ("north", "south"):
            await js.add_stream(StreamConfig(name=f"ANS_{client}", subjects=[f"fl.ans.{client}.>"]))
            await js.add_stream(StreamConfig(name=f"UP_{client}", subjects=[f"fl.up.{client}.>"]))
            for stream, to, subject in (
                ("ASK", "ask", f"fl.ask.{client}.>"),
                ("DOWN", "down.nonce", f"fl.down.{client}.>"),
            ):
                push = ConsumerConfig(
                    durable_name=client,
                    deliver_subject=f"_INBOX_{client}.{to}",
                    filter_subject=subject,
                    ack_policy=AckPolicy.EXPLICIT,
                )
                await js.add_consumer(stream, push)

    try:
        together(streams, kit_of(made, "coordinator"))
        yield made
    finally:
        broker.stop()


MAY = {
    "north": ("fl.ans.north.run.1", "fl.up.north.run.1.k.0", "fl.here.north", "fl.fetch.north"),
    "operator": ("fl.op.status", "fl.op.run.stop"),
}
MAY_NOT = {
    "north": """
        fl.ans.south.run.1 fl.up.south.run.1.k.0 fl.here.south fl.fetch.south fl.ans.north fl.here.north.more fl.ask.north.x
        fl.ask.south.x fl.down.x.chunk.0 fl.op.stop _INBOX_north.x _INBOX_south.x _INBOX_coordinator.x _R_.x $KV.fl_state.lease
        $SYS.REQ.SERVER.PING $JS.ACK.ASK.south.1.1.1.1.0 $JS.ACK.DOWN.south.1.1.1.1.0 $JS.ACK.ANS_north.north.1 $JS.FC.x
        $JS.API.INFO $JS.API.STREAM.NAMES $JS.API.STREAM.INFO.ASK $JS.API.STREAM.CREATE.MINE $JS.API.STREAM.DELETE.ASK
        $JS.API.STREAM.PURGE.ANS_south $JS.API.STREAM.MSG.GET.ANS_south $JS.API.STREAM.MSG.DELETE.ASK $JS.API.DIRECT.GET.ANS_south
        $JS.API.CONSUMER.CREATE.ASK $JS.API.CONSUMER.CREATE.ASK.mine $JS.API.CONSUMER.DURABLE.CREATE.ASK.mine
        $JS.API.CONSUMER.DELETE.ASK.south $JS.API.CONSUMER.INFO.ASK.north $JS.API.CONSUMER.MSG.NEXT.ASK.north
    """,
    "operator": "fl.op fl.ans.north.x fl.here.north fl.ask.north.x fl.down.x $JS.API.STREAM.NAMES $KV.fl_state.x _INBOX_north.x",
    "coordinator": "$SYS.REQ.SERVER.PING anything _INBOX_stranger.x",
}
HEARS = {
    "north": ("_INBOX_north.x", "_INBOX_north.>"),
    "operator": ("_INBOX_operator.>",),
    "coordinator": ("fl.>", "$KV.fl_state.>", "$JS.EVENT.ADVISORY.>", "_INBOX_coordinator.>"),
}
HEARS_NOT = {
    "north": "> fl.> fl.ask.north.> fl.ans.north.> _INBOX_south.> _INBOX_coordinator.> $JS.> $KV.> _R_.> $SYS.>",
    "operator": "> fl.op.> fl.ans.> _INBOX_north.> $JS.>",
    "coordinator": "> _INBOX_north.> _INBOX_operator.> $SYS.>",
}


OTHERS = """
    fl.ans.south.forged fl.up.south.forged fl.here.south fl.op.stop fl.down.forged fl.ask.south.forged $KV.fl_state.lease
    $JS.API.STREAM.PURGE.ANS_south $JS.API.STREAM.DELETE.UP_south _INBOX_south.forged _INBOX_coordinator.forged
"""


def _pairs(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(party, subject) for party, subjects in table.items() for subject in subjects]


@pytest.mark.parametrize("party", MAY)
def test_what_a_party_may_publish_reaches_the_coordinator(federation: FederationFolder, party: str) -> None:
    async def scene(coordinator: Node, node: Node) -> None:
        heard: list[str] = []

        async def hear(message: object) -> None:
            heard.append(message.subject)  # type: ignore[attr-defined]

        await coordinator.client.subscribe("fl.>", cb=hear)
        await coordinator.flush()
        for subject in MAY[party]:
            await node.client.publish(subject, b"here")
        assert await node.told() == []
        await until(lambda: len(heard) >= len(MAY[party]))
        assert tuple(heard) == MAY[party]

    together(scene, kit_of(federation, "coordinator"), kit_of(federation, party))


@pytest.mark.parametrize("party", MAY_NOT)
def test_everything_else_is_denied_and_arrives_nowhere(federation: FederationFolder, party: str) -> None:
    async def scene(coordinator: Node, node: Node) -> None:
        heard: list[str] = []

        async def hear(message: object) -> None:
            heard.append(message.subject)  # type: ignore[attr-defined]

        for subject in ("fl.>", "$KV.>", "_INBOX_coordinator.x"):
            await coordinator.client.subscribe(subject, cb=hear)
        await coordinator.flush()
        for subject in MAY_NOT[party].split():
            await node.client.publish(subject, b"evil")
            said = await node.told()
            assert said and said[-1].lower().startswith(
                f'nats: permissions violation for publish to "{subject.lower()}"'
            ), subject
            node.errors.clear()
        await coordinator.flush()
        assert heard == []

    together(scene, kit_of(federation, "coordinator"), kit_of(federation, party))


@pytest.mark.parametrize(("party", "subject"), _pairs(HEARS))
def test_what_a_party_may_hear(federation: FederationFolder, party: str, subject: str) -> None:
    async def scene(node: Node) -> None:
        await node.client.subscribe(subject)
        assert await node.told() == []

    together(scene, kit_of(federation, party))


@pytest.mark.parametrize("party", HEARS_NOT)
def test_what_a_party_may_not_hear(federation: FederationFolder, party: str) -> None:
    async def scene(node: Node) -> None:
        for subject in HEARS_NOT[party].split():
            await node.client.subscribe(subject)
            said = await node.told()
            assert said and said[-1].lower().startswith(
                f'nats: permissions violation for subscription to "{subject.lower()}"'
            ), subject
            node.errors.clear()

    together(scene, kit_of(federation, party))


@pytest.mark.parametrize(
    ("stream", "box", "subject"), [("ASK", "ask", "fl.ask.north.run.1"), ("DOWN", "down.nonce", "fl.down.north.0")]
)
def test_what_is_pushed_to_a_client_is_its_own_to_acknowledge(
    federation: FederationFolder, stream: str, box: str, subject: str
) -> None:
    async def scene(coordinator: Node, north: Node, south: Node) -> None:
        js = coordinator.client.jetstream()
        theirs = await south.client.subscribe(f"_INBOX_south.{box}")
        ours = await north.client.subscribe(f"_INBOX_north.{box}")
        await north.flush()
        await js.publish(subject, b"train")
        message = await ours.next_msg(10)
        assert (message.subject, message.data) == (subject, b"train")
        await message.in_progress()
        await south.client.publish(message.reply, b"+ACK")
        assert "permissions violation" in (await south.told())[-1].lower()
        assert (await js.consumer_info(stream, "north")).num_ack_pending == 1
        await message.ack()
        assert await north.told() == []
        async with asyncio.timeout(10):
            while (await js.consumer_info(stream, "north")).num_ack_pending:
                await asyncio.sleep(0.01)
        assert theirs.pending_msgs == 0

    together(scene, *(kit_of(federation, name) for name in ("coordinator", "north", "south")))


def test_what_was_pushed_while_a_client_was_away_is_there_when_it_is_back(federation: FederationFolder) -> None:
    async def scene(coordinator: Node, north: Node) -> None:
        js = coordinator.client.jetstream()
        box = await north.client.subscribe("_INBOX_north.ask")
        await north.flush()
        north.client._transport._io_writer.transport.abort()  # type: ignore[union-attr]  # as when its machine fails
        await until(lambda: north.client.is_closed or not north.client.is_connected)
        await js.publish("fl.ask.north.run.8", b"later")
        back = await connect(kit_of(federation, "north"))
        try:
            box = await back.client.subscribe("_INBOX_north.ask")
            message = await box.next_msg(10)
            assert message.data == b"later"
            await message.ack()
            assert await back.told() == []
        finally:
            await back.client.close()

    together(scene, kit_of(federation, "coordinator"), kit_of(federation, "north"))


def test_what_a_client_stores_is_acknowledged_to_it(federation: FederationFolder) -> None:
    async def scene(coordinator: Node, north: Node) -> None:
        for subject, stream in (("fl.ans.north.run.2", "ANS_north"), ("fl.up.north.run.2.k.0", "UP_north")):
            (told,) = await north.ask(subject, b"x" * (1 << 20))
            assert b'"stream":"%s"' % stream.encode() in told.data
            kept = await coordinator.client.jetstream().get_last_msg(stream, subject)
            assert kept.data == b"x" * (1 << 20)

    together(scene, kit_of(federation, "coordinator"), kit_of(federation, "north"))


def test_the_coordinator_answers(federation: FederationFolder) -> None:
    """One reply to a client's request, many to an operator's, and a word of the coordinator's own."""

    async def scene(coordinator: Node, north: Node, operator: Node) -> None:
        async def answer(message: object) -> None:
            for i in range(20 if message.subject == "fl.op.logs" else 1):  # type: ignore[attr-defined]
                await message.respond(b"%d" % i)  # type: ignore[attr-defined]

        for subject in ("fl.fetch.*", "fl.op.>"):
            await coordinator.client.subscribe(subject, cb=answer)
        news = [
            await node.client.subscribe(f"_INBOX_{name}.news")
            for node, name in ((north, "north"), (operator, "operator"))
        ]
        for node in (coordinator, north, operator):
            await node.flush()
        assert [int(reply.data) for reply in await operator.ask("fl.op.logs", count=20)] == list(range(20))
        assert (await north.client.request("fl.fetch.north", b"", timeout=10)).data == b"0"
        for box in news:
            await coordinator.client.publish(box.subject, b"hello")
            assert (await box.next_msg(10)).data == b"hello"

    together(scene, *(kit_of(federation, name) for name in ("coordinator", "north", "operator")))


def test_a_reply_reaches_nothing_of_others(federation: FederationFolder) -> None:
    """The broker does not check where replies go; in an account of its own, a client can only send them to itself."""

    async def scene(coordinator: Node, north: Node, south: Node) -> None:
        heard: list[str] = []

        async def hear(message: object) -> None:
            heard.append(message.subject)  # type: ignore[attr-defined]

        async def answer(message: object) -> None:
            await message.respond(b"forged")  # type: ignore[attr-defined]

        js = coordinator.client.jetstream()
        await js.publish("fl.ans.south.genuine", b"genuine")
        before = (await js.stream_info("ANS_south")).state
        for subject in (
            "fl.ans.south.>",
            "fl.up.south.>",
            "fl.here.south",
            "fl.op.>",
            "fl.down.>",
            "fl.ask.south.>",
            "$KV.>",
        ):
            await coordinator.client.subscribe(subject, cb=hear)
        await coordinator.client.subscribe("_INBOX_coordinator.forged", cb=hear)
        await coordinator.client.subscribe("fl.fetch.*", cb=answer)
        await south.client.subscribe("_INBOX_south.>", cb=hear)
        for node in (coordinator, south):
            await node.flush()
        for target in OTHERS.split():
            await north.client.publish("fl.ans.north.mine", b"forged", reply=target)  # answered with an acknowledgement
            await north.client.publish("fl.up.north.mine", b"forged", reply=target)
            await north.client.publish(
                "$JS.ACK.ASK.north.1.1.1.1.0", b"+NXT", reply=target
            )  # with what is stored, or a status
            await north.client.publish("fl.fetch.north", b"", reply=target)  # by the coordinator
        await north.told()
        await north.ask("fl.fetch.north")  # behind the others: they have been answered
        await asyncio.sleep(0.2)
        for node in (coordinator, south):
            await node.flush()
        assert heard == []
        assert (await js.stream_info("ANS_south")).state.messages == before.messages
        assert (await js.stream_info("ANS_south")).state.last_seq == before.last_seq
        await js.stream_info("UP_south")

    together(scene, *(kit_of(federation, name) for name in ("coordinator", "north", "south")))


def test_a_party_cannot_open_connections_without_end(federation: FederationFolder) -> None:
    async def flood() -> None:
        nodes: list[Node] = []
        try:
            with pytest.raises(Exception, match=r"(?i)maximum account active connections|connection"):
                for _ in range(17):
                    nodes.append(await connect(kit_of(federation, "north")))
            assert len(nodes) == 16
            nodes.append(await connect(kit_of(federation, "south")))
        finally:
            for node in nodes:
                await node.client.close()

    asyncio.run(flood())
