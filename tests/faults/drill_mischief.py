"""What can go wrong with a message, a disk or a clock: each function installs one thing in one process of a drill."""

from __future__ import annotations

import datetime
import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from fedloom.codec import wire
from fedloom.codec.wire import Buffer
from fedloom.engines.remote import client_link, connection, resident, said, server_link, signing, transfer
from fedloom.engines.remote.authority import new_nkey
from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.notes import News
from fedloom.tracking import checkpoint, rundir

__all__: list[str] = []

Content = Callable[[bytes], bytes]
DAMAGE: dict[str, Content] = {
    "flip": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "truncate": lambda content: content[:-7],
}


def round_in(subject: str) -> int:
    """The round that a subject names; -1 for none."""
    parts = subject.split(".")
    return int(parts[4]) if len(parts) > 5 and parts[4].lstrip("-").isdigit() else -1


def on_publish(
    change: Callable[[Any, str, bytes], bytes | None], after: Callable[[Any, str, bytes], Any] | None = None
) -> None:
    """See, or change, what a link stores at the broker; None is not sent."""
    inner = connection.Connection.publish

    async def publish(self: Any, subject: str, content: Buffer) -> bool:
        payload = bytes(content)
        changed = change(self, subject, payload)
        found = changed is None or await inner(self, subject, changed)
        if after is not None:
            for more_subject, more in after(self, subject, payload) or ():
                await inner(self, more_subject, more)
        return found

    connection.Connection.publish = publish  # type: ignore[method-assign]


# -- duplicates, and another order


def said_twice(_: Any, kind: str) -> None:
    """Every message of a kind is stored twice more."""
    on_publish(
        lambda link, subject, payload: payload,
        lambda link, subject, payload: [(subject, payload)] * 2 * subject.startswith(kind),
    )


def asked_twice(_: Any, __: Any) -> None:
    """Every ask is delivered twice."""
    inner = NatsClientLink._on_ask

    async def on_ask(self: Any, message: Any) -> None:
        await inner(self, message)
        await inner(self, message)

    NatsClientLink._on_ask = on_ask  # type: ignore[method-assign]


def heard_twice(_: Any, __: Any) -> None:
    """Every answer is delivered to the coordinator twice."""
    inner = server_link.NatsServerLink._on_answer

    async def on_answer(self: Any, message: Any) -> None:
        await inner(self, message)
        message._ackd = False
        await inner(self, message)

    server_link.NatsServerLink._on_answer = on_answer  # type: ignore[method-assign]


def chunks_arrive_twice(_: Any, __: Any) -> None:
    """Every chunk that is fetched comes twice."""
    inner = transfer.Assembly.put

    def put(self: Any, index: int, content: bytes) -> None:
        inner(self, index, content)
        inner(self, index, content)

    transfer.Assembly.put = put  # type: ignore[method-assign]


def chunks_leave_backwards(_: Any, __: Any) -> None:
    """The last chunk of an upload is stored first."""
    inner = transfer.windowed

    async def windowed(indices: Any, move: Any, beat: float) -> None:
        for index in reversed(list(indices)):
            await inner([index], move, beat)

    client_link.windowed = windowed  # type: ignore[attr-defined]


def chunks_arrive_backwards(_: Any, __: Any) -> None:
    """The first chunk of what is fetched comes last."""
    inner = transfer.Assembly.put

    def put(self: Any, index: int, content: bytes) -> None:
        kept = self.__dict__.setdefault("kept", {})
        kept[index] = content
        if len(kept) == len(self._missing):
            for each in sorted(kept, reverse=True):
                inner(self, each, kept[each])

    transfer.Assembly.put = put  # type: ignore[method-assign]


def old_answers_again(_: Any, __: Any) -> None:
    """With every answer, all earlier ones are said again, after it."""
    spoken: dict[str, bytes] = {}

    def after(link: Any, subject: str, payload: bytes) -> Any:
        if not subject.startswith("fl.ans."):
            return []
        again = list(spoken.items())
        spoken[subject] = payload
        return again

    on_publish(lambda link, subject, payload: payload, after)


# -- damage


def damaged_message(_: Any, told: tuple[str, str, int]) -> None:
    """Every message of a kind and a round is damaged before it is stored: (`flip` or `truncate`, kind, round)."""
    how, kind, round = told
    on_publish(
        lambda link, subject, payload: (
            DAMAGE[how](payload) if subject.startswith(kind) and round_in(subject) == round else payload
        )
    )


def damaged_ask(_: Any, told: tuple[str, str, int]) -> None:
    """The ask to a client in a round is damaged before it is stored: (`flip` or `truncate`, client, round)."""
    how, client, round = told
    damaged_message(_, (how, f"fl.ask.{client}.", round))


def damaged_update(_: Any, told: tuple[str, int]) -> None:
    """The update of a round is damaged before it is signed: its digest fits, and its format does not."""
    how, round = told
    inner = resident.encode

    def encode(header: Any, tensors: Any) -> bytes:
        content = inner(header, tensors)
        if header.round != round:
            return content
        return content[:-7] if how == "truncate" else bytes([content[0] ^ 1]) + content[1:]

    resident.encode = encode  # type: ignore[attr-defined]


def damaged_download(_: Any, told: tuple[str, str]) -> None:
    """What is fetched is not what was stored: (`flip` or `truncate`, how the blob's key ends or begins)."""
    how, key = told
    inner = transfer.Assembly.put

    def put(self: Any, index: int, content: bytes) -> None:
        hit = index == 0 and key in self._blob.key
        inner(self, index, DAMAGE[how](content) if hit else content)

    transfer.Assembly.put = put  # type: ignore[method-assign]


def damaged_store(gate: Any, told: tuple[str, int]) -> None:
    """The first chunk of a round's vector is stored damaged, by the coordinator's first process alone."""
    how, _ = told
    first = gate.first_life()
    left = [1]

    def change(link: Any, subject: str, payload: bytes) -> bytes:
        if (
            first
            and left
            and gate.current.get("round") == told[1]
            and subject.startswith("fl.down.")
            and subject.endswith(".chunk.0")
        ):
            left.clear()
            gate.write(damaged=subject)
            return DAMAGE[how](payload)
        return payload

    on_publish(change)


# -- stale versions


def other_header(_: Any, told: tuple[int, dict[str, Any]]) -> None:
    """The update of a round says something else of itself."""
    at, changes = told
    inner = resident._message

    def message(own: Any, work: Any, update: Any) -> Any:
        header, tensors = inner(own, work, update)
        return (header.model_copy(update=changes) if work.round == at else header), tensors

    resident._message = message


def other_format(_: Any, round: int) -> None:
    """The update of a round is of another version of the wire format."""
    inner = resident.encode

    def encode(header: Any, tensors: Any) -> bytes:
        content = inner(header, tensors)
        return content[:7] + bytes([wire.VERSION + 1]) + content[8:] if header.round == round else content

    resident.encode = encode  # type: ignore[attr-defined]


def old_answer_instead(_: Any, round: int) -> None:
    """In place of the answer of a round, that of the round before is said."""
    spoken: dict[int, bytes] = {}

    def change(link: Any, subject: str, payload: bytes) -> bytes:
        if not subject.startswith("fl.ans."):
            return payload
        spoken[round_in(subject)] = payload
        return spoken[round - 1] if round_in(subject) == round else payload

    on_publish(change)


# -- wrong keys


def other_signature(_: Any, told: tuple[str, int]) -> None:
    """What this party signs in a direction, from a round on, is signed with a key that nobody knows."""
    direction, round = told
    inner, other = signing.Signer.seal, new_nkey()[0].decode()
    seen = {"round": 0}
    if direction == "answer":

        def watch(self: Any, ask: Any) -> None:
            seen["round"] = ask.round

        from drill_parties import gated

        gated(resident.Resident, "handle", before=watch)

    def seal(self: Any, which: Any, client: str, content: bytes) -> bytes:
        if which == direction and seen["round"] >= round:
            return inner(signing.Signer(self.federation, other), which, client, content)
        return inner(self, which, client, content)

    signing.Signer.seal = seal  # type: ignore[method-assign]


def forged_asks(_: Any, __: Any) -> None:
    """Before every ask to train there comes one that is signed with another key, and so does news that it is withdrawn."""
    from fedloom.engines.remote.link import Ask

    other = new_nkey()[0].decode()
    inner = connection.Connection.publish

    async def publish(self: Any, subject: str, payload: bytes) -> bool:
        parts = subject.split(".")
        found = True
        if subject.startswith("fl.ask.") and parts[5] == "train":
            content = payload[64:]
            signer = signing.Signer(_federation(self), other)
            forged = Ask.model_validate_json(content)
            forged = forged.model_copy(update={"facts": {**forged.facts, "lr_factor": 100.0}})
            await inner(
                self, ".".join([*parts[:-1], "0" * 32]), signer.seal("ask", parts[2], forged.model_dump_json().encode())
            )
            found = await inner(self, subject, payload)
            news = News(withdrawn=[Ask.model_validate_json(content).digest]).model_dump_json().encode()
            await self.tell(f"_INBOX_{parts[2]}.news", signer.seal("news", parts[2], news))
            return found
        return await inner(self, subject, payload)

    connection.Connection.publish = publish  # type: ignore[method-assign]
    from drill_parties import gated

    gated(
        server_link.NatsServerLink,
        "_ask",
        before=lambda self, asks: setattr(self._connection, "federation", self._federation),
    )


def _federation(link: Any) -> str:
    return str(link.federation)


# -- dropping out, disks and clocks


def fate(name: str, round: int) -> str:
    """What becomes of a client in a round of the long drill: three in ten do not answer, in one of three ways."""
    drawn = random.Random(f"{name} {round} 12").random()
    return "fails" if drawn < 0.2 else "is late" if drawn < 0.25 else "dies" if drawn < 0.3 else "answers"


def drops_out(gate: Any, name: str) -> None:
    """This client meets its fate, round by round."""
    inner = resident.train_group

    def train(prepared: Any, store: Any, trainer: Any, work: Any, clients: Any) -> Any:
        met = fate(name, work.round)
        mark = gate.folder / f"died-{work.round}"
        if met == "dies" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if met == "fails":
            raise RuntimeError("out of battery")
        yield from inner(prepared, store, trainer, work, clients)

    resident.train_group = train
    inner_answer = NatsClientLink.answer

    def answer(self: Any, said: Any, content: bytes | None = None) -> None:
        _, round, kind, _ = said.id.rsplit(".", 3)
        while kind == "train" and fate(name, int(round)) == "is late" and said.ask not in self._withdrawn:
            time.sleep(0.02)
        inner_answer(self, said, content)

    NatsClientLink.answer = answer  # type: ignore[method-assign]


def full_disk(gate: Any, told: tuple[str, int]) -> None:
    """The first process's disk is full when it writes this: (what, how often)."""
    what, often = told
    left = [often if gate.first_life() else 0]

    def refuse(inner: Any, hit: Callable[..., bool]) -> Any:
        def write(*given: Any, **named: Any) -> Any:
            if left[0] and hit(*given):
                left[0] -= 1
                gate.write(full=what)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return inner(*given, **named)

        return write

    if what == "opening":
        resident.write_atomic = refuse(resident.write_atomic, lambda path, _: path.name == "opened.json")  # type: ignore[attr-defined]
    elif what == "kept answer":
        resident.write_atomic = refuse(resident.write_atomic, lambda path, _: path.name == "answer.bin")  # type: ignore[attr-defined]
    elif what == "said":
        said.Said._write = refuse(said.Said._write, lambda _, name, __: name.endswith(".content"))  # type: ignore[method-assign]
    elif what == "owner's log":
        resident.Resident._write = refuse(resident.Resident._write, lambda _, line: line["kind"] == "train")  # type: ignore[method-assign]
    elif what == "checkpoint":
        checkpoint.atomic_folder = refuse(checkpoint.atomic_folder, lambda path: path.name == "round-000002")  # type: ignore[attr-defined]
    elif what == "metrics":
        rundir.RunDir._append = _refused_append(
            refuse(rundir.RunDir._append, lambda _, name, records: name == "metrics.jsonl" and records[0]["round"] == 2)
        )  # type: ignore[method-assign]
    else:
        raise AssertionError(what)


def _refused_append(inner: Any) -> Any:
    def append(self: Any, name: str, records: Any) -> None:
        with rundir.writing(name, self.path):
            inner(self, name, records)

    return append


def clock_jumps(gate: Any, told: tuple[str, int, float]) -> None:
    """The wall clock of this process, as Python tells it, jumps at a phase of a round by so many seconds; -1: from the start."""
    phase, round, seconds = told
    inner_reach, jumped = gate.reach, list[str]()

    def jump() -> None:
        real_time, real_gmtime, real_localtime = time.time, time.gmtime, time.localtime
        time.time = lambda: real_time() + seconds
        time.gmtime = lambda at=None: real_gmtime(real_time() + seconds if at is None else at)
        time.localtime = lambda at=None: real_localtime(real_time() + seconds if at is None else at)

        class Skewed(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.fromtimestamp(real_time() + seconds, tz)

        for name, module in list(sys.modules.items()):
            if name.startswith("fedloom") and getattr(module, "datetime", None) is datetime.datetime:
                module.datetime = Skewed  # type: ignore[attr-defined]
        gate.write(jumped=phase)

    def reach(at: str, number: int) -> None:
        if (at, number) == (phase, round) and not jumped:
            jumped.append(at)
            jump()
        inner_reach(at, number)

    if round < 0:
        jump()
    gate.reach = reach
