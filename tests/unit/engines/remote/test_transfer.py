"""Blobs in chunks: every size, in any order, over faults; what is not what was announced is refused."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from link_tools import PATIENCE, Place, answer_to, ask_to, gather, opened, take, wait_for

from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.connection import Times
from fedloom.engines.remote.link import Answer, Ask, Blob
from fedloom.engines.remote.notes import Wanted
from fedloom.engines.remote.server_link import NatsServerLink
from fedloom.engines.remote.subjects import upload_subject
from fedloom.engines.remote.transfer import CHUNK, WINDOW, Assembly, Refused, chunk, chunk_size, chunks, windowed
from fedloom.errors import FedloomError, RunError

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 20 << 20]


def blob_of(content: bytes, **changes: object) -> Blob:
    return Blob(**({"key": "w", "sha256": sha256(content).hexdigest(), "size": len(content)} | changes))


@pytest.mark.parametrize("size", [*SIZES[:-1], 3 * CHUNK + 17])
def test_chunks_make_the_blob_again_in_any_order_and_said_twice(size: int) -> None:
    content = os.urandom(size)
    assert [len(chunk(content, i)) for i in range(chunks(size))] == [chunk_size(size, i) for i in range(chunks(size))]
    order = [*range(chunks(size))] * 2
    random.Random(0).shuffle(order)
    arriving = Assembly(blob_of(content), size, where="here")
    for index in order:
        arriving.put(index, chunk(content, index))
    assert (arriving.left, arriving.missing) == (0, [])
    assert arriving.finish() == content


def test_what_is_not_what_was_announced_is_refused() -> None:
    content = os.urandom(2 * CHUNK + 5)
    for index, wrong in ((2, content[:6]), (1, content[: CHUNK - 1]), (3, b"x"), (-1, b"x"), (0, b"")):
        with pytest.raises(Refused, match="instead of"):
            Assembly(blob_of(content), 1 << 30, where="here").put(index, wrong)
    short = Assembly(blob_of(content), 1 << 30, where="here")
    short.put(0, chunk(content, 0))
    assert short.missing == [1, 2]
    with pytest.raises(Refused, match="2 chunks are missing"):
        short.finish()
    other = Assembly(blob_of(content, sha256="0" * 64), 1 << 30, where="here")
    for index in range(3):
        other.put(index, chunk(content, index))
    with pytest.raises(Refused, match="SHA-256 is another"):
        other.finish()


def test_memory_is_taken_once_and_not_at_all_for_what_is_too_large() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Refused, match=rf"has {1 << 40} bytes, and at most {1 << 30}"):
            Assembly(Blob(key="w", sha256="0" * 64, size=1 << 40), 1 << 30, where="here")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        size = 32 << 20
        part = bytes(CHUNK)
        arriving = Assembly(blob_of(bytes(size)), size, where="here")
        tracemalloc.reset_peak()
        for index in range(chunks(size)):
            arriving.put(index, part)
        assert len(arriving.finish()) == size
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()


def test_a_slow_link_gets_few_chunks_at_a_time_and_a_fast_one_a_window() -> None:
    flying, most = 0, {"fast": 0, "slow": 0}

    async def run(which: str, seconds: float, beat: float) -> None:
        async def move(index: int) -> None:
            nonlocal flying
            flying += 1
            if index > 60:  # when it has settled
                most[which] = max(most[which], flying)
            await asyncio.sleep(seconds)
            flying -= 1

        await windowed(range(100), move, beat)

    asyncio.run(run("fast", 0.001, 10.0))
    asyncio.run(run("slow", 0.006, 0.01))
    assert most == {"fast": WINDOW, "slow": 1}


def test_the_first_chunk_that_fails_stops_the_rest() -> None:
    moved: list[int] = []

    async def move(index: int) -> None:
        moved.append(index)
        await asyncio.sleep(0.001)
        if index == 5:
            raise RunError("no")

    with pytest.raises(RunError):
        asyncio.run(windowed(range(1000), move, 1.0))
    assert len(moved) < 50


def test_times_follow_from_the_lease() -> None:
    for lease in (1.0, 30.0):
        times = Times(lease)
        assert times.pause < times.beat < lease < times.patience
        assert times.lease >= 3 * times.beat


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with opened(tmp_path_factory.mktemp("transfer")) as place:
        yield place


@pytest.fixture(scope="module")
def ends(place: Place) -> tuple[NatsServerLink, NatsClientLink]:
    return place.server(), place.client("north")


_rounds = iter(range(1, 10_000))


def answered(ends: tuple[NatsServerLink, NatsClientLink], content: bytes) -> tuple[Ask, Answer]:
    """A new ask, and the answer with this content."""
    server, client = ends
    ask = ask_to("north", next(_rounds))
    server.ask([ask])
    assert take(client) == ask
    client.answer(answer_to(ask), content)
    return ask, gather(server, [ask])["north"]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_goes_both_ways(ends: tuple[NatsServerLink, NatsClientLink], size: int) -> None:
    server, client = ends
    content = os.urandom(size)
    blob = server.put(f"w.{size}", content)
    assert (blob.size, blob.sha256) == (size, sha256(content).hexdigest())
    assert client.get(blob) == content
    _, answer = answered(ends, content)
    for _ in range(2):
        assert server.fetch(answer, size) == content
    if size:
        with pytest.raises(Refused, match="too large"):
            server.fetch(answer, size - 1)
    server.forget("r.1", 10_000)


def test_a_client_that_does_not_keep_up_is_sent_one_window(ends: tuple[NatsServerLink, NatsClientLink]) -> None:
    server, client = ends
    blob, got = server.put("w", os.urandom((WINDOW + 8) * CHUNK)), list[int]()

    async def keep(message: Any) -> None:
        got.append(len(message.data))

    async def ask_for(window: int) -> None:
        wanted = Wanted(sha256=blob.sha256, size=blob.size, first=3, to=f"{window:032x}", window=window)
        await client._connection.subscribe(f"_INBOX_north.down.{window:032x}", keep)
        await client._connection.request(
            "fl.fetch.north", client._signer.seal("fetch", "north", wanted.model_dump_json().encode())
        )

    for window in (WINDOW, 2):
        got.clear()
        client._connection.call(ask_for(window))
        wait_for(lambda window=window: len(got) == window)
        time.sleep(0.2)
        assert got == [CHUNK] * window
    assert sha256(client.get(blob)).hexdigest() == blob.sha256


def tamper(server: NatsServerLink, subject: str, stream: str, content: bytes | None) -> None:
    """Put something else in the place of a message, as who has the broker's disk could."""
    connection = server._connection
    connection.call(server._streams.purge(stream, subject))
    if content is not None:
        assert connection.call(connection.publish(subject, content))


@pytest.mark.parametrize(
    ("index", "new", "why"),
    [(1, bytes(CHUNK), "SHA-256 is another"), (2, None, "2 of 7 bytes is missing"), (0, b"short", "0 has 5 bytes instead")],
    ids=["another chunk", "no last chunk", "a shorter chunk"],
)  # fmt: skip
@pytest.mark.parametrize("way", ["up", "down"])
def test_what_was_changed_on_the_broker_is_refused(
    ends: tuple[NatsServerLink, NatsClientLink], way: str, index: int, new: bytes | None, why: str
) -> None:
    server, client = ends
    content = os.urandom(2 * CHUNK + 7)
    if way == "up":
        ask, answer = answered(ends, content)
        assert answer.content is not None
        tamper(server, f"{upload_subject(ask, answer.content.key)}.{index}", "UP_north", new)
        with pytest.raises(Refused, match=why):
            server.fetch(answer, 1 << 30)
    else:
        blob = server.put("w", content)
        name = server._blobs._name(blob.sha256)
        tamper(server, f"fl.down.{name}.chunk.{index}", "DOWN", new)
        with pytest.raises(FedloomError, match=why if new else "no longer holds it"):
            client.get(blob)
    _, fine = answered(ends, b"the next is not harmed")
    assert server.fetch(fine, 100) == b"the next is not harmed"


def test_a_client_that_signs_another_digest_or_size_is_refused(ends: tuple[NatsServerLink, NatsClientLink]) -> None:
    server, client = ends
    for change in ({"sha256": "0" * 64}, {"size": 1 << 50}, {"size": 5}, {"key": "..."}, {"key": "a.b"}):
        ask = ask_to("north", next(_rounds))
        server.ask([ask])
        take(client)
        said = answer_to(ask, content=blob_of(b"content", **change))
        sealed = client._signer.seal("answer", "north", said.model_dump_json().encode())
        client._connection.call(client._send(ask, said, sealed, b"content"))
        answer = gather(server, [ask])["north"]
        with pytest.raises(Refused):
            server.fetch(answer, 1 << 20) if "." not in str(change.get("key")) else _content(server, answer)


def _content(server: NatsServerLink, answer: Answer) -> None:
    assert server.fetch(answer, 1 << 20) == b"content"  # a strange key is no harm
    raise Refused("as it should be")


def test_a_limit_of_the_client_is_kept(place: Place, ends: tuple[NatsServerLink, NatsClientLink]) -> None:
    small = place.client("south", limit=1000)
    with pytest.raises(Refused, match="at most 1000 are accepted"):
        small.get(ends[0].put("w", bytes(1001)))


def test_put_goes_on_where_it_was_and_mends_what_is_wrong(tmp_path: Path) -> None:
    content = os.urandom(5 * CHUNK)
    with opened(tmp_path) as place:
        first = place.server(holder="seat")
        blob = first.put("w", content)
        name = first._blobs._name(blob.sha256)
        tamper(first, f"fl.down.{name}.chunk.1", "DOWN", None)
        tamper(first, f"fl.down.{name}.chunk.3", "DOWN", b"junk of a forger")
        first._connection.close()
        second, client = place.server(holder="seat"), place.client("north")
        before = second._connection.call(second._connection.js.stream_info("DOWN")).state.last_seq
        assert second.put("w", content) == blob
        after = second._connection.call(second._connection.js.stream_info("DOWN")).state.last_seq
        assert after - before == 2, "only what was missing, or wrong, is stored again"
        assert client.get(blob) == content


def test_a_full_stream_is_an_error_of_who_filled_it(tmp_path: Path) -> None:
    with opened(tmp_path) as place:
        server = place.server(upload_bytes=2 << 20)
        clients = {name: place.client(name) for name in ("north", "south")}
        asks = [ask_to(name) for name in clients]
        server.ask(asks)
        with pytest.raises(RunError, match="Maximum bytes"):
            clients["north"].answer(answer_to(take(clients["north"])), bytes(4 << 20))
        clients["north"].answer(answer_to(asks[0], status="failed", reason="no room"))
        clients["south"].answer(answer_to(take(clients["south"])), bytes(1 << 20))
        found = gather(server, asks)
        assert (found["north"].status, server.fetch(found["south"], 1 << 20)) == ("failed", bytes(1 << 20))


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_broker_that_is_killed_in_the_middle_of_a_transfer(tmp_path: Path, way: str) -> None:
    content = os.urandom(24 << 20)
    with opened(tmp_path) as place:
        server, client = place.server(), place.client("north")
        ask, got = ask_to("north"), list[bytes]()
        server.ask([ask])
        take(client)
        if way == "down":
            blob = server.put("w", content)
            thread = threading.Thread(target=lambda: got.append(client.get(blob)), daemon=True)
            begun = lambda: client._connection._client.stats["in_bytes"] > 4 << 20  # noqa: E731
        else:
            thread = threading.Thread(target=lambda: client.answer(answer_to(ask), content), daemon=True)
            begun = lambda: client._connection._client.stats["out_bytes"] > 9 << 20  # noqa: E731
        thread.start()
        wait_for(begun, "the transfer begins")
        place.kill_broker()
        assert thread.is_alive(), "it was not in the middle"
        place.broker.start()
        thread.join(PATIENCE)
        if way == "up":
            got.append(server.fetch(gather(server, [ask])["north"], len(content)))
        assert got == [content]


def resident(what: str) -> int:
    """Bytes of this process, as the kernel tells them: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


@pytest.mark.slow
def test_a_hundred_megabytes_to_two_clients_and_back_in_bounded_memory(tmp_path: Path) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # earlier tests had peaks of their own
    before = resident("VmRSS")
    size = 100 << 20
    content = os.urandom(size)
    with opened(tmp_path) as place:
        server = place.server()
        clients = {name: place.client(name) for name in ("north", "south")}

        def work(name: str) -> None:
            ask = take(clients[name])
            clients[name].answer(answer_to(ask), clients[name].get(ask.blobs["w"]))

        for number in (1, 2):
            blob = server.put("w", content)
            asks = [ask_to(name, number, blobs={"w": blob}) for name in clients]
            threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in clients]
            for thread in threads:
                thread.start()
            server.ask(asks)
            for answer in gather(server, asks).values():
                assert server.fetch(answer, size) == content
            for thread in threads:
                thread.join(PATIENCE)
            server.forget("r.1", number + 1)
        state = server._connection.call(server._connection.js.stream_info("UP_north")).state
        assert state.bytes == 0
        peak = resident("VmHWM") - before
        # in this one process: the blob, two clients with one each (and their copy on the way), and the coordinator's one
        assert peak < 8 * size + (400 << 20), peak
