"""What a client with a valid key of its own, or whoever can write to the broker, cannot make the coordinator believe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats.js.errors
import pytest
from federation_tools import kit_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from link_tools import PATIENCE, Place, answer_to, ask_to, gather, opened, take, wait_for

from fedloom.engines.remote.authority import new_nkey
from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.kit import connect_options
from fedloom.engines.remote.link import Ask
from fedloom.engines.remote.notes import Wanted
from fedloom.engines.remote.server_link import NatsServerLink
from fedloom.engines.remote.signing import Forged, Signer, _canonical, unseal, verify_key
from fedloom.engines.remote.transfer import CHUNK
from fedloom.errors import RunError, UsageError

SEED, PUBLIC = new_nkey()
OTHER_SEED, OTHER = new_nkey()


def signer(federation: str = "fed", seed: bytes = SEED) -> Signer:
    return Signer(federation, seed.decode())


def test_what_was_signed_is_what_is_read() -> None:
    sealed = signer().seal("answer", "north", b"content")
    assert unseal(verify_key(PUBLIC), "fed", "answer", "north", sealed) == b"content"


CLAIMS: dict[str, dict[str, Any]] = {
    "federation": {"federation": "fed2"}, "ask": {"direction": "ask"}, "beat": {"direction": "beat"},
    "client": {"client": "south"}, "key": {"key": OTHER}, "shifted": {"federation": "fe", "client": "dnorth"},
    "cut": {"sealed": lambda s: s[:-1]}, "longer": {"sealed": lambda s: s + b"x"}, "empty": {"sealed": lambda s: b""},
    "other content": {"sealed": lambda s: s[:70] + b"!" + s[71:]}, "unsigned": {"sealed": lambda s: s[64:]},
    "other signature": {"sealed": lambda s: bytes([s[0] ^ 1]) + s[1:]}, "half": {"sealed": lambda s: s[:63]},
}  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_what_was_not_signed_for_this_is_refused(claim: dict[str, Any]) -> None:
    said = {"key": PUBLIC, "federation": "fed", "direction": "answer", "client": "north", "sealed": bytes} | claim
    sealed = said.pop("sealed")(signer().seal("answer", "north", b"the content"))
    with pytest.raises(Forged):
        unseal(verify_key(said.pop("key")), message=sealed, **said)


@given(parts=st.lists(st.text(max_size=4), min_size=3, max_size=3), cut=st.integers(-4, 4), other=st.integers(-4, 4))
@example(parts=["f", "askn", ""], cut=3, other=0)
@settings(max_examples=100, deadline=None)
def test_different_fields_never_have_the_same_bytes(parts: list[str], cut: int, other: int) -> None:
    """Whatever is moved over the border from one field to the next, or to the one after the direction."""
    federation, client, content = parts
    joined, at = f"{federation}ask{client}", len(federation) + cut
    moved = joined[: max(0, at)], joined[max(0, at) + 3 :]
    both, end = client + content, max(0, len(client) + other)
    mine = _canonical(federation, "ask", client, content.encode())
    for theirs in ((*moved, content), (federation, both[:end], both[end:])):
        same = _canonical(theirs[0], "ask", theirs[1], theirs[2].encode()) == mine
        assert same == (theirs == (federation, client, content))


def test_names_cannot_be_told_without_the_key() -> None:
    names = {signer().name("north", "x"), signer().name("south", "x"), signer().name("north", "y")}
    names |= {signer("fed2").name("north", "x"), signer(seed=OTHER_SEED).name("north", "x")}
    assert len(names) == 5
    assert signer().name("north", "x") == signer().name("north", "x")


def test_what_is_no_key_is_refused() -> None:
    for key in ("", "U", PUBLIC[:-1], PUBLIC + "A", "A" + PUBLIC[1:], PUBLIC[:20] + "7" * 36, "é" * 56):
        with pytest.raises(UsageError, match="not a public nkey"):
            verify_key(key)
    for seed in ("", "SU", SEED.decode()[:-9], "SX" + SEED.decode()[2:], PUBLIC, "é" * 58):
        with pytest.raises(UsageError, match="cannot be read") as caught:
            Signer("fed", seed)
        assert len(seed) < 4 or seed not in str(caught.value), "a seed is not shown"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with opened(tmp_path_factory.mktemp("forgery")) as place:
        yield place


@pytest.fixture(scope="module")
def server(place: Place) -> NatsServerLink:
    return place.server()


@pytest.fixture(scope="module")
def north(place: Place) -> NatsClientLink:
    """An honest client's end; its connection is also that of the forger, who has this client's kit."""
    return place.client("north")


@pytest.fixture(scope="module")
def south(place: Place) -> NatsClientLink:
    return place.client("south")


_rounds = iter(range(1, 10_000))


def store(end: Any, subject: str, content: bytes, headers: dict[str, str] | None = None) -> None:
    """Publish into a stream, with whatever headers, over the connection of a link."""
    connection = end._connection
    connection.call(connection.js.publish(subject, content, headers=headers, timeout=PATIENCE))


def messages(server: NatsServerLink, stream: str) -> int:
    connection = server._connection
    return int(connection.call(connection.js.stream_info(stream)).state.messages)


def honest(server: NatsServerLink, client: NatsClientLink, ask: Ask) -> None:
    """The client whose name was used is not harmed."""
    assert take(client) == ask
    client.answer(answer_to(ask), b"genuine")
    answer = gather(server, [ask])[ask.client]
    assert server.fetch(answer, 100) == b"genuine"


FORGERIES: dict[str, Callable[[Place, Ask, Ask], tuple[bytes, dict[str, str] | None]]] = {
    "an answer in south's name, signed by north": lambda place, ask, own: (sealed(place, "north", "south", answer_to(ask)), None),
    "an answer of south, signed as north": lambda place, ask, own: (sealed(place, "north", "north", answer_to(ask)), None),
    "south's genuine answer, on north's subject": lambda place, ask, own: (sealed(place, "south", "south", answer_to(ask)), None),
    "an answer for another federation": lambda place, ask, own: (
        sealed(place, "north", "north", answer_to(ask, client="north"), federation="0" * 64), None,
    ),
    "an unsigned answer": lambda place, ask, own: (answer_to(ask, client="north").model_dump_json().encode(), None),
    "a signed answer to an ask that was never made": lambda place, ask, own: (
        sealed(place, "north", "north", answer_to(ask, client="north").model_copy(update={"ask": "0" * 64})), None,
    ),
    "a signed answer to south's ask": lambda place, ask, own: (
        sealed(place, "north", "north", answer_to(ask, client="north")), None,
    ),
    "a signed message that is no answer": lambda place, ask, own: (
        signer_of(place, "north").seal("answer", "north", b'{"id": "x", "__reduce__": "os.system"}'), None,
    ),
    "a copy of another stream's message": lambda place, ask, own: (
        sealed(place, "north", "north", answer_to(own)), {"Nats-Stream": "UP_north", "Nats-Sequence": "1"},
    ),
    "an answer to its own ask, in south's name": lambda place, ask, own: (
        sealed(place, "north", "north", answer_to(own, client="south")), None,
    ),
    "a megabyte of noise": lambda place, ask, own: (bytes(1 << 20), None),
    "nothing": lambda place, ask, own: (b"", None),
}  # fmt: skip


def signer_of(place: Place, name: str, federation: str | None = None) -> Signer:
    kit = kit_of(place.federation, name)
    return Signer(federation or kit.id, kit.seed())


def sealed(place: Place, key: str, client: str, answer: Any, federation: str | None = None) -> bytes:
    return signer_of(place, key, federation).seal("answer", client, answer.model_dump_json().encode())


@pytest.mark.parametrize("what", FORGERIES)
def test_forged_answers_are_refused_logged_and_deleted_and_harm_nobody(
    place: Place, server: NatsServerLink, north: NatsClientLink, south: NatsClientLink, what: str, caplog: Any
) -> None:
    ask, own = ask_to("south", next(_rounds)), ask_to("north", next(_rounds))
    server.ask([ask, own])
    before = messages(server, "ANS_north")
    content, headers = FORGERIES[what](place, ask, own)
    store(north, f"fl.ans.north.r.{ask.round}.{ask.digest}", content, headers)
    wait_for(
        lambda: [r for r in caplog.records if "was refused" in r.message and "fl.ans.north" in r.message],
        "it is logged",
    )
    wait_for(lambda: messages(server, "ANS_north") == before, "it is deleted")
    assert server.answers([ask, own], 0.05) == []
    server.cancel([own])
    honest(server, south, ask)


def test_the_reply_trick_stores_nothing_of_another(
    place: Place, server: NatsServerLink, north: NatsClientLink, south: NatsClientLink
) -> None:
    """The broker is asked to send its reply to what it stores for north, or to any of north's requests, to a subject of south."""
    ask = ask_to("south", next(_rounds))
    server.ask([ask])
    streams = ["ANS_south", "UP_south", "ASK", "DOWN", "KV_fl_state"]
    client = north._connection._client
    before = [messages(server, each) for each in streams]
    revision = server._lease._revision
    targets = ["fl.ans.south.r.1.x", "fl.up.south.r.1.k.0", "fl.ask.south.r.1.train.0.x", "fl.down.x.chunk.0"]
    targets += [f"$KV.fl_state.{server._lease._key}", "fl.here.south", "fl.fetch.south", "_INBOX_south.ask"]

    async def trick() -> None:
        for target in targets:
            for subject in ("fl.ans.north.r.1.y", "fl.up.north.r.1.k", "fl.fetch.north", "$JS.ACK.ASK.north.1.1.1.1.0"):
                await client.publish(subject, b"attack", reply=target)
            forbidden = (
                "$JS.API.CONSUMER.MSG.NEXT.ASK.north",
                "$JS.API.STREAM.INFO.ANS_north",
                "$JS.API.DIRECT.GET.UP_north",
            )
            for subject in forbidden:
                await client.publish(subject, b"{}", reply=target)
        await client.flush()

    north._connection.call(trick())
    honest(server, south, ask)
    after = [messages(server, each) for each in streams]
    assert after[0] - before[0] == 1 and after[1] - before[1] == 1, "south's own answer and its chunk"
    assert after[2:] == before[2:]
    assert server._lease._revision - revision <= 3, "the lease is renewed, not stolen"
    server._lease.require()


def test_another_cannot_use_up_the_id_of_a_message(
    server: NatsServerLink, north: NatsClientLink, south: NatsClientLink
) -> None:
    ask = ask_to("south", next(_rounds))
    server.ask([ask])
    subject = f"fl.ans.north.r.{ask.round}.{ask.digest}"
    for guess in (ask.id, ask.digest, f"r-{ask.id}-south", f"fl.ans.south.{ask.digest}"):
        store(north, subject, b"first", {"Nats-Msg-Id": guess})
    honest(server, south, ask)


def test_what_somebody_planted_on_the_broker_harms_nobody(
    place: Place, server: NatsServerLink, north: NatsClientLink, south: NatsClientLink, caplog: Any
) -> None:
    """On a broker with one account for all, a reply could have put junk wherever can be guessed; here the coordinator puts it."""
    number = next(_rounds)
    content = bytes(range(256)) * (CHUNK // 128)
    ask = ask_to("south", number, blobs={"w": server.put("w", content)})
    junk = json.dumps({"stream": "ANS_north", "seq": 5}).encode()
    for subject in (f"fl.ask.south.r=2e=1.{number}.train.0.{ask.digest}", f"fl.ans.south.r=2e=1.{number}.{ask.digest}"):
        store(server, subject, junk)
    store(server, "fl.up.south.junk", junk)
    name = server._blobs._name(ask.blobs["w"].sha256)
    with pytest.raises(nats.js.errors.APIError, match="per subject"):
        store(server, f"fl.down.{name}.chunk.0", junk)
    connection = server._connection
    for subject in (
        "_INBOX_south.ask",
        "_INBOX_south.news",
        "fl.here.south",
        "fl.fetch.south",
        server._connection._client.new_inbox(),
    ):
        connection.call(connection._client.publish(subject, junk, reply="fl.ans.south.x"))
    server.ask([ask])
    assert south.get(ask.blobs["w"]) == content
    honest(server, south, ask)
    wait_for(lambda: sum("was refused" in r.message for r in caplog.records) >= 5, "what was refused is logged")
    server.forget("r.1", 10_000)
    assert [messages(server, each) for each in ("ASK", "ANS_south", "UP_south", "DOWN")] == [0, 0, 0, 0]


def test_a_forged_lease_is_written_over(tmp_path: Path) -> None:
    with opened(tmp_path) as place:
        first = place.server(lease=1.0)
        store(first, f"$KV.fl_state.{first._lease._key}", b'{"by": "forger"}')
        revision = first._lease._revision
        wait_for(lambda: first._lease._revision > revision + 1, "it is renewed again")
        first.ask([ask_to("north")])


def test_forged_asks_and_withdrawals_are_refused(
    place: Place, server: NatsServerLink, north: NatsClientLink, south: NatsClientLink, caplog: Any
) -> None:
    ask, number = ask_to("south", next(_rounds)), 0
    body = ask.model_dump_json().encode()
    coordinator, forger = signer_of(place, "coordinator"), signer_of(place, "north")
    spaced = json.dumps(json.loads(body), indent=1).encode()
    genuine = coordinator.seal("ask", "south", body)
    for message, headers in (
        (forger.seal("ask", "south", body), None),
        (coordinator.seal("ask", "north", body), None),
        (coordinator.seal("ask", "south", ask_to("north").model_dump_json().encode()), None),
        (signer_of(place, "coordinator", "another federation").seal("ask", "south", body), None),
        (coordinator.seal("ask", "south", spaced), None),
        (body, None),
        (genuine[:-1], None),
        (genuine, {"Nats-Stream": "ANS_north"}),
    ):
        number += 1
        store(server, f"fl.ask.south.r.{ask.round}.train.0.{number}", message, headers)
    server.ask([ask])
    assert take(south) == ask, "of all these the genuine one is given out, and first"
    wait_for(lambda: sum("fl.ask.south" in r.message for r in caplog.records) == number, "each is logged")
    news = json.dumps({"withdrawn": [ask.digest]}).encode()
    for message in (forger.seal("news", "south", news), coordinator.seal("news", "north", news), news):
        server._connection.call(server._connection.tell("_INBOX_south.news", message))
    wait_for(lambda: sum("_INBOX_south.news" in r.message for r in caplog.records) == 3)
    assert not south.cancelled(ask)
    south.answer(answer_to(ask))
    assert gather(server, [ask])["south"].status == "ok"
    js = server._connection.js
    wait_for(
        lambda: server._connection.call(js.consumer_info("ASK", "south")).num_ack_pending == 0,
        "what was refused is not delivered again",
    )


def test_a_client_of_another_federation_or_coordinator_hears_nothing(
    place: Place, server: NatsServerLink, tmp_path: Path
) -> None:
    kit = kit_of(place.federation, "north")
    own = {
        "federation": kit.id,
        "client": "north",
        "seed": kit.seed(),
        "coordinator": kit.coordinator,
        "folder": tmp_path,
    }
    for change in ({"federation": "f" * 64}, {"coordinator": OTHER}):
        link = NatsClientLink(connect_options(kit), **(own | change))
        try:
            server.ask([ask := ask_to("north", next(_rounds))])
            assert link.next(0.5) is None
            server.cancel([ask])
        finally:
            link.close()


def test_a_reply_goes_to_the_inbox_of_who_asked_and_nowhere_else(
    place: Place, server: NatsServerLink, south: NatsClientLink, caplog: Any
) -> None:
    """South, with one account for all, would have the coordinator store a chunk as north's answer."""
    blob = server.put("w", b"small")
    wanted = Wanted(sha256=blob.sha256, size=blob.size, first=0, to="0" * 32, window=1).model_dump_json().encode()
    before, connection = messages(server, "ANS_north"), server._connection
    sealed = signer_of(place, "south").seal("fetch", "south", wanted)
    connection.call(connection._client.publish("fl.fetch.south", sealed, reply="fl.ans.north.x"))
    wait_for(lambda: [r for r in caplog.records if "its reply is to go to fl.ans.north.x" in r.message])
    assert south.get(blob) == b"small"
    assert messages(server, "ANS_north") == before


def test_an_answer_with_the_id_of_another_ask_counts_for_neither(
    place: Place, server: NatsServerLink, south: NatsClientLink, caplog: Any
) -> None:
    asks = [ask_to("south", next(_rounds)), ask_to("south", next(_rounds))]
    server.ask(asks)
    wrong = answer_to(asks[0], id=asks[1].id)
    store(south, f"fl.ans.south.r.1.{asks[0].digest}", sealed(place, "south", "south", wrong))
    wait_for(lambda: asks[0].digest in server._arrived)
    assert server.answers(asks, 0.1) == []
    for ask in asks:
        honest(server, south, ask)


def test_only_what_was_verified_is_fetched(server: NatsServerLink, south: NatsClientLink) -> None:
    ask = ask_to("south", next(_rounds))
    server.ask([ask])
    take(south)
    south.answer(answer_to(ask), b"genuine")
    wait_for(lambda: ask.digest in server._arrived)
    given = server._arrived[ask.digest]
    with pytest.raises(RunError, match="no such answer"):
        server.fetch(given, 100)  # before it was returned
    answer = gather(server, [ask])["south"]
    assert answer.content is not None
    other = answer.model_copy(update={"content": answer.content.model_copy(update={"size": 6})})
    with pytest.raises(RunError, match="no such answer"):
        server.fetch(other, 100)
    assert server.fetch(answer, 7) == b"genuine"
