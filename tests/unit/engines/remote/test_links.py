"""Both ends of a link on a real broker, and what they do when something dies."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from federation_tools import kit_of, new_federation
from link_tools import PATIENCE, Place, answer_to, ask_to, gather, opened, take, wait_for

from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.kit import connect_options, read_kit
from fedloom.engines.remote.server_link import NatsServerLink
from fedloom.errors import FedloomError, RunError, UsageError


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with opened(tmp_path) as place:
        yield place


def drop(link: Any) -> None:
    """The process of a link dies: nothing is released, nothing is said."""
    link._connection.close()


def stored(server: NatsServerLink, stream: str) -> Any:
    """The state of a stream."""
    connection = server._connection
    return connection.call(connection.steadily(lambda: connection.js.stream_info(stream))).state


def background(act: Callable[[], Any]) -> Callable[[], Any]:
    """Do something in a thread; the function returned waits for it and returns or raises what came of it."""
    came: dict[str, Any] = {}

    def work() -> None:
        try:
            came["value"] = act()
        except BaseException as error:
            came["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "it did not end"
        if "error" in came:
            raise came["error"]
        return came["value"]

    return wait


def test_rounds_of_asks_and_answers(place: Place) -> None:
    server, clients = place.server(), {name: place.client(name) for name in ("north", "south")}
    for number in (1, 2):
        asks = [ask_to(name, number, facts={"lr": 0.1, "é": [1, None]}) for name in clients]
        server.ask(asks)
        for name, client in clients.items():
            ask = take(client)
            assert ask == asks[list(clients).index(name)]
            wait_for(lambda name=name, ask=ask: server.presence()[name].busy in (None, ask.id))
            client.answer(answer_to(ask, facts={"of": name}))
        found = gather(server, asks)
        assert {name: answer.facts for name, answer in found.items()} == {name: {"of": name} for name in clients}
        assert server.answers(asks, 0.2) == []  # each is returned once
    assert all(client.next(0.1) is None for client in clients.values())


def test_an_ask_is_stored_once_and_delivered_once(place: Place) -> None:
    server, client, ask = place.server(), place.client("north"), ask_to("north")
    for _ in range(3):
        server.ask([ask])
    server.ask([ask_to("north", facts={"lr": 0.2})])  # the same id, another content: another ask
    assert (stored(server, "ASK").messages, stored(server, "ASK").last_seq) == (2, 2)
    assert {take(client).digest for _ in range(2)} == {ask.digest, ask_to("north", facts={"lr": 0.2}).digest}
    assert client.next(0.3) is None


def test_a_coordinator_that_restarts_finds_what_was_answered_meanwhile(place: Place) -> None:
    first, client, ask = place.server(holder="seat", lease=60.0), place.client("north"), ask_to("north")
    early = ask_to("north", part=1)
    first.ask([early])
    client.answer(answer_to(take(client)), b"early")
    gather(first, [early])
    first.ask([ask])
    drop(first)
    client.answer(answer_to(take(client)), b"weights")
    began = time.monotonic()
    again = place.server(holder="seat", lease=60.0)
    assert time.monotonic() - began < 30, "it takes its own seat at once"
    again.ask([ask, early])
    for each, content in ((ask, b"weights"), (early, b"early")):
        assert again.fetch(gather(again, [each])["north"], 100) == content
    assert client.next(0.5) is None, "it is not asked to train again"


@pytest.mark.slow
def test_a_client_that_dies_is_asked_again_and_one_that_trains_long_is_not(place: Place) -> None:
    server, first = place.server(lease=1.0), place.client("north", lease=1.0)
    server.ask([ask_to("north")])
    ask = take(first)
    time.sleep(2.5)  # this thread is busy, as in a training step, for several leases
    consumer = server._connection.call(server._connection.js.consumer_info("ASK", "north"))
    assert (consumer.num_ack_pending, consumer.delivered.consumer_seq) == (1, 1), "its lease was renewed"
    drop(first)
    second = place.client("north", lease=1.0)
    assert take(second) == ask
    second.answer(answer_to(ask))
    assert gather(server, [ask])["north"].status == "ok"


def test_an_ask_that_is_delivered_again_is_not_given_out_again(place: Place) -> None:
    server, client = place.server(lease=1.0), place.client("north", lease=1.0)

    async def hold(message: Any) -> None:
        return

    server.ask([ask_to("north")])
    ask, message = take(client), next(iter(client._held.values())).message
    message.in_progress = lambda: hold(message)  # what renews its lease does not arrive
    wait_for(lambda: next(iter(client._held.values())).message is not message, "it is delivered again")
    assert client.next(0.2) is None
    client.answer(answer_to(ask))
    assert gather(server, [ask])["north"].status == "ok"
    js = server._connection.js
    wait_for(lambda: server._connection.call(js.consumer_info("ASK", "north")).num_ack_pending == 0)


def test_a_client_that_dies_before_its_answer_has_left_does_not_train_again(place: Place) -> None:
    server, first = place.server(lease=1.0), place.client("north", lease=1.0)
    server.ask([ask_to("north")])
    ask, content = take(first), os.urandom(3 << 19)

    async def die(*_: Any) -> None:
        raise RuntimeError("killed")

    first._send = die
    with pytest.raises(RuntimeError):
        first.answer(answer_to(ask), content)
    drop(first)
    second = place.client("north", lease=1.0)
    found = gather(server, [ask])["north"]
    assert server.fetch(found, len(content)) == content
    assert second.next(0.1) is None
    assert not list((place.folder / "said-north").rglob("*.content")), "what has arrived is not kept"


def test_an_answer_that_is_said_again_counts_once(place: Place) -> None:
    server, client, ask = place.server(), place.client("north"), ask_to("north")
    server.ask([ask])
    client.answer(answer_to(take(client)))
    sealed = next((place.folder / "said-north").rglob("*.answer")).read_bytes()
    for _ in range(3):
        client._connection.call(client._connection.publish(f"fl.ans.north.r=2e=1.1.{ask.digest}", sealed))
    assert len(server.answers([ask], PATIENCE)) == 1
    assert server.answers([ask], 0.5) == []
    with pytest.raises(RunError, match="no ask"):
        client.answer(answer_to(ask))


@pytest.mark.parametrize("told", [True, False], ids=["it is told", "it missed that"])
def test_a_withdrawn_ask_stops_its_client_and_its_answer_is_refused(place: Place, told: bool) -> None:
    lease = 100.0 if told else 1.0  # in the first case beats come too late to tell it
    server, client, ask = place.server(lease=lease), place.client("north", lease=lease), ask_to("north")
    other = ask_to("north", part=1)
    server.ask([ask])
    take(client)
    tell = server._tell
    if not told:

        async def silent(*_: Any) -> None:
            return

        server._tell = silent  # type: ignore[method-assign]
    server.cancel([ask])
    server._tell = tell  # type: ignore[method-assign]
    wait_for(lambda: client.cancelled(ask))
    client.answer(answer_to(ask), b"late")
    late = client._signer.seal("answer", "north", answer_to(ask).model_dump_json().encode())
    client._connection.call(client._connection.publish(f"fl.ans.north.r.1.{ask.digest}", late))
    wait_for(lambda: stored(server, "ANS_north").messages == 0, "a late answer is deleted")
    assert (stored(server, "UP_north").messages, server.answers([ask], 0.2)) == (0, [])
    server.ask([other])
    assert take(client) == other


def test_what_was_withdrawn_can_be_asked_again(place: Place) -> None:
    server, client = place.server(lease=1.0), place.client("north", lease=1.0)
    asks = [ask_to("north"), ask_to("north", part=1)]
    server.ask(asks)
    take(client)
    take(client)
    client.answer(answer_to(asks[0]))
    wait_for(lambda: asks[0].digest in server._arrived)
    server.cancel(asks)  # one is answered, but nobody has been told; the other is worked on
    wait_for(lambda: client.cancelled(asks[1]))
    server.ask(asks)
    assert take(client) == asks[1], "what it has answered it says again by itself"
    assert not client.cancelled(asks[1])
    client.answer(answer_to(asks[1]))
    found: set[str] = set()
    wait_for(lambda: found.update(answer.id for answer in server.answers(asks, 1.0)) or len(found) == 2)


def test_what_a_former_coordinator_asked_late_still_counts(place: Place) -> None:
    """It was published after its successor had read which asks there are."""
    server, client, ask = place.server(), place.client("north"), ask_to("north")
    server.ask([ask])
    server._live.clear()
    assert take(client) == ask
    client._connection.call(client._beat())
    client.answer(answer_to(ask))
    assert gather(server, [ask])["north"].status == "ok"


def test_clients_come_and_go_while_the_coordinator_runs(place: Place) -> None:
    shutil.copytree(place.federation.path / "kits" / "north", place.folder / "kit")  # it is not ours to delete
    server, south = place.server(), place.client("south")
    north = place.client("north", options=connect_options(read_kit(place.folder / "kit")))
    place.federation.add(["west"])
    place.broker.reload(kit_of(place.federation, "coordinator"))
    server.enrol(kit_of(place.federation, "coordinator").clients)
    west, ask = place.client("west"), ask_to("west")
    server.ask([ask])
    west.answer(answer_to(take(west)), b"new")
    assert server.fetch(gather(server, [ask])["west"], 10) == b"new"
    place.federation.revoke(["north"])
    kit = kit_of(place.federation, "coordinator")
    server.enrol(kit.clients)
    place.broker.reload(kit)
    with pytest.raises(RunError, match="'north' is not a client"):
        server.ask([ask_to("north")])
    with pytest.raises(UsageError, match="does not know the key of 'north'"):
        north.next(PATIENCE)
    ask = ask_to("south")
    server.ask([ask])
    assert take(south) == ask


def test_what_was_stored_is_freed_round_by_round(place: Place) -> None:
    server, client = place.server(), place.client("north")
    base, kept = os.urandom(700_000), []
    for number in (1, 2, 3):
        blobs = {"w": server.put(f"w{number}", os.urandom(600_000)), "base": server.put("base", base)}
        ask = ask_to("north", number, blobs=blobs)
        server.ask([ask])
        client.answer(answer_to(take(client)), os.urandom(600_000))
        gather(server, [ask])
        kept.append(blobs["w"])
        server.forget("r.1", number)
        sizes = [stored(server, each).bytes for each in ("ASK", "ANS_north", "UP_north", "DOWN")]
        assert sizes[0] < 2_000 and sizes[1] < 2_000, sizes
        assert 600_000 < sizes[2] < 610_000, "this round's upload"
        assert 1_300_000 < sizes[3] < 1_320_000, "this round's blobs"
    assert client.get(kept[-1]).__len__() == 600_000
    with pytest.raises(RunError, match="no longer holds it"):
        client.get(kept[0])
    server.forget("another run", 100)
    assert stored(server, "UP_north").bytes > 600_000
    server.forget("r.1", 4)
    assert [stored(server, each).bytes for each in ("ASK", "ANS_north", "UP_north", "DOWN")] == [0, 0, 0, 0]
    again = server.put("w1", b"x" * 600_000)
    assert client.get(again) == b"x" * 600_000


def test_there_is_one_coordinator(place: Place) -> None:
    first = place.server(lease=1.5)
    with pytest.raises(RunError, match=r"another coordinator is at work.* of 1\.5 seconds"):
        place.server(lease=1.5)
    first.ask([ask_to("north")])  # it is still in its seat
    first.close()
    began = time.monotonic()
    place.server(lease=60.0)
    assert time.monotonic() - began < 30, "who left has released it"


def test_the_seat_of_a_dead_coordinator_is_free_after_its_lease(place: Place) -> None:
    drop(place.server(lease=1.5))
    began = time.monotonic()
    second = place.server(lease=1.5)
    assert time.monotonic() - began >= 1.0
    second.ask([ask_to("north")])


def test_a_coordinator_whose_seat_was_taken_stops(place: Place) -> None:
    first = place.server(lease=1.5, holder="seat")
    second = place.server(lease=1.5, holder="seat")  # by who knows that the first has lost its lock
    with pytest.raises(RunError, match="another coordinator"):
        first.answers([ask_to("north")], PATIENCE)
    for act in (lambda: first.put("w", b"x"), lambda: first.cancel([]), lambda: first.forget("r", 1), first.presence):
        with pytest.raises(RunError, match="another coordinator"):
            act()
    second.ask([ask_to("north")])


def test_a_seat_that_lapsed_unseen_is_not_used(place: Place) -> None:
    server = place.server(lease=1.0)
    place.kill_broker()
    wait_for(lambda: time.monotonic() > server._lease._until, "the lease lapses")
    came: list[object] = []
    waiting = background(lambda: came.append(server.answers([], 0.0)))
    time.sleep(0.5)
    assert not came, "nothing is done without the seat"
    place.broker.start()
    waiting()
    assert came == [[]]


def test_presence_comes_and_goes(place: Place) -> None:
    server = place.server(lease=1.0)
    north, _ = place.client("north", lease=1.0), place.client("south", lease=1.0)
    wait_for(lambda: set(server.presence()) == {"north", "south"})
    ask = ask_to("north")
    server.ask([ask])
    take(north)
    wait_for(lambda: server.presence()["north"].busy == ask.id)
    drop(north)
    wait_for(lambda: set(server.presence()) == {"south"})


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_broker_that_restarts_while_all_wait(place: Place, how: str) -> None:
    server, client, ask = place.server(), place.client("north"), ask_to("north")
    waiting_client = background(lambda: take(client))
    time.sleep(0.2)
    if how == "killed":
        place.kill_broker()
    else:
        place.broker.stop()
    place.broker.start()
    server.ask([ask])
    assert waiting_client() == ask
    waiting = background(lambda: gather(server, [ask]))
    place.kill_broker()
    answering = background(lambda: client.answer(answer_to(ask), b"x" * 1_000_000))
    place.broker.start()
    answering()
    assert server.fetch(waiting()["north"], 1 << 20) == b"x" * 1_000_000


def test_a_connection_that_the_broker_ended_for_good_is_made_anew(place: Place) -> None:
    server, client = place.server(), place.client("north")
    for end in (server, client):
        end._connection.call(end._connection._client._process_err("'maximum connections exceeded'"))
        wait_for(lambda end=end: not end._connection._client.is_connected, "nats-py gives up")
    ask = ask_to("north")
    server.ask([ask])
    client.answer(answer_to(take(client)), b"x")
    assert server.fetch(gather(server, [ask])["north"], 1) == b"x"


@pytest.mark.slow
def test_a_broker_that_is_not_there(place: Place) -> None:
    place.kill_broker()
    with pytest.raises(RunError, match="no broker answers") as caught:
        place.client("north", lease=1.0)
    assert "Start the broker" in str(caught.value)


def test_who_is_not_of_the_federation_is_told_so(place: Place, tmp_path: Path) -> None:
    stranger = new_federation(tmp_path / "elsewhere", name="elsewhere")
    kit, ours = kit_of(stranger, "north"), connect_options(kit_of(place.federation, "north"))
    theirs = connect_options(kit)
    settings: dict[str, Any] = {
        "federation": kit.id,
        "client": "north",
        "seed": kit.seed(),
        "coordinator": kit.coordinator,
    }
    settings["folder"] = tmp_path
    with pytest.raises(UsageError, match="does not know the key of 'north'"):
        NatsClientLink(theirs | {"tls": ours["tls"], "servers": ours["servers"]}, **settings)
    with pytest.raises(UsageError, match="is not that of this federation"):
        NatsClientLink(theirs | {"servers": ours["servers"]}, **settings)


def test_what_the_broker_forbids_is_an_error_at_once(place: Place) -> None:
    server, north = place.server(), place.client("north")
    ask = ask_to("south")
    server.ask([ask])
    with pytest.raises(UsageError, match=r"does not let 'north' publish to fl\.ans\.South\.x"):
        north._connection.call(north._connection.publish("fl.ans.South.x", b"mine"))
    kit = kit_of(place.federation, "north")
    settings: dict[str, Any] = {
        "federation": kit.id,
        "seed": kit.seed(),
        "coordinator": kit.coordinator,
        "folder": place.folder,
    }
    with pytest.raises(UsageError, match="does not let 'south' subscribe to _INBOX_south"):
        NatsClientLink(connect_options(kit), client="south", **settings)


def test_asks_to_strangers_are_refused(place: Place) -> None:
    with pytest.raises(RunError, match="'west' is not a client"):
        place.server().ask([ask_to("west")])


def test_a_closed_link_says_so(place: Place) -> None:
    client = place.client("north")
    client.close()
    with pytest.raises(FedloomError, match="closed"):
        client.next(PATIENCE)


def test_a_signal_does_not_make_a_client_wait_for_ever(place: Place) -> None:
    """Its handler may take longer than what is left of the wait that it interrupts."""
    place.server()
    link, main = place.client("north"), threading.get_ident()
    earlier = signal.signal(signal.SIGUSR2, lambda *_: time.sleep(0.6))
    told = threading.Timer(0.2, lambda: signal.pthread_kill(main, signal.SIGUSR2))
    try:
        told.start()
        began = time.monotonic()
        assert link.next(0.5) is None
        assert time.monotonic() - began > 0.5
    finally:
        told.join()
        signal.signal(signal.SIGUSR2, earlier)


def test_what_was_left_to_be_sent_on_a_connection_that_is_gone_is_no_error(place: Place) -> None:
    async def close() -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    place.server()
    link = place.client("north")
    link._connection._client.close = close  # type: ignore[method-assign]
    link.close()
    assert link._connection._loop.is_closed()
