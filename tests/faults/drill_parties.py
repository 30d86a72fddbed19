"""The processes of a drill: the command's own verbs, forked, with gates at the phases and whatever mischief was ordered."""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import drill_mischief
import torch

from fedloom.engines.remote import connection, resident, server_link, transfer
from fedloom.engines.remote.client_link import NatsClientLink
from fedloom.engines.remote.server_link import NatsServerLink
from fedloom.tracking.checkpoint import CheckpointFolder

__all__ = ["CHUNK", "Party", "gated", "run_party"]

CHUNK = 1024
"""Small chunks, so that the blobs of a tiny model are several."""


@dataclass(frozen=True)
class Party:
    """What a process is started with."""

    name: str
    kit: Path
    folder: Path
    lease: float
    gates: Sequence[tuple[str, int]] = ()
    """The phases, by round, at which it stops until it is told to go on; each once."""
    mischief: Sequence[tuple[str, Any]] = ()
    """Functions of `drill_mischief` to install, and what they are told."""

    @property
    def coordinates(self) -> bool:
        """Whether it is the coordinator."""
        return self.name.startswith("coordinator")


class Gate:
    """Where a process stops."""

    def __init__(self, party: Party, pipe: Pipe) -> None:
        self._party, self._pipe, self._left = party, pipe, set(party.gates)
        self._lock = threading.Lock()
        self.folder = party.folder
        self.current: dict[str, int] = {}

    def first_life(self) -> bool:
        """Whether this is the first process of its party."""
        first = not (self._party.folder / "lived").exists()
        (self._party.folder / "lived").touch()
        return first

    def reach(self, phase: str, round: int) -> None:
        """Tell the drill, and wait for its word, if this moment was chosen."""
        with self._lock:
            if (phase, round) not in self._left:
                return
            self._left.discard((phase, round))
            self._pipe.send((phase, round))
            self._pipe.recv()

    def write(self, **line: Any) -> None:
        """A line in the drill's own record."""
        content = json.dumps({"pid": os.getpid(), **line}) + "\n"
        descriptor = os.open(self._party.folder / "drill.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, content.encode())
        os.close(descriptor)


def run_party(party: Party, pipe: Pipe) -> None:
    """A forked process's whole life; it leaves with the exit code of the command."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it ends with the tests, whatever becomes of them
    log = os.open(party.folder / "out.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = (os.fdopen(each, "w", buffering=1, closefd=False) for each in (1, 2))
    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    transfer.CHUNK = CHUNK
    gate = Gate(party, pipe)
    (_gate_coordinator if party.coordinates else _gate_client)(gate)
    for name, told in party.mischief:
        getattr(drill_mischief, name)(gate, told)
    from fedloom.errors import FedloomError

    try:
        _command(party)
    except FedloomError as error:
        print(f"error: {error}", flush=True)
        os._exit(error.exit_code)
    except KeyboardInterrupt:
        os._exit(130)
    except BaseException:
        logging.exception("it died")
        os._exit(70)
    sys.stdout.flush()
    os._exit(0)


def _command(party: Party) -> None:
    if party.coordinates:
        from fedloom.cli.serve import serve

        serve(kit=party.kit, folder=party.folder, metrics=None, metrics_address="127.0.0.1", lease=party.lease)
    else:
        from fedloom.cli.join import join

        join(kit=party.kit, site=party.folder / "site.yaml", data=None, state=party.folder / "state", lease=party.lease)


def gated(
    owner: Any, name: str, before: Callable[..., None] | None = None, after: Callable[..., None] | None = None
) -> None:
    """Wrap a function of a class or a module."""
    inner = getattr(owner, name)

    def outer(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given, **named)
        found = inner(*given, **named)
        if after is not None:
            after(*given, **named)
        return found

    setattr(owner, name, outer)


def _gate_client(gate: Gate) -> None:
    """join: an experiment is opened; broadcast: the vector arrives; train; upload: a chunk has left; commit: the answer has."""
    gated(resident.Resident, "_open", before=lambda _, ask: gate.reach("join", 0))
    current = {"round": 0, "kind": ""}

    def vector(_: Any, ask: Any, *__: Any) -> None:
        current.update(round=ask.round, kind=ask.kind)

    gated(resident.Resident, "_vector", before=vector)
    inner_put = transfer.Assembly.put

    def put(self: Any, index: int, content: bytes) -> None:
        inner_put(self, index, content)
        if current["kind"] == "train":
            gate.reach("broadcast", current["round"])

    transfer.Assembly.put = put  # type: ignore[method-assign]
    inner_train = resident.train_group

    def train(prepared: Any, store: Any, trainer: Any, work: Any, clients: Any) -> Any:
        gate.reach("train", work.round)
        gate.write(trained=work.round)
        yield from inner_train(prepared, store, trainer, work, clients)
        gate.reach("trained", work.round)

    resident.train_group = train
    inner_publish = connection.Connection.publish

    async def publish(self: Any, subject: str, payload: bytes) -> bool:
        found = await inner_publish(self, subject, payload)
        if subject.startswith("fl.up."):
            gate.reach("upload", int(subject.split(".")[4]))
        return found

    connection.Connection.publish = publish  # type: ignore[method-assign]
    gated(NatsClientLink, "answer", after=lambda _, answer, content=None: _answered(gate, answer))


def _answered(gate: Gate, answer: Any) -> None:
    _, round, kind, _ = answer.id.rsplit(".", 3)
    gate.reach({"train": "commit", "open": "joined", "evaluate": "judged"}.get(kind, kind), int(round))


def _gate_coordinator(gate: Gate) -> None:
    """join, train: clients were asked; broadcast: a chunk is stored; upload: an update is fetched; commit: about to be saved."""
    current = gate.current
    current["round"] = 0

    def before_put(_: Any, key: str, content: bytes) -> None:
        part = key.rsplit(".", 2)
        current["round"] = int(part[1]) if len(part) == 3 and part[1].isdigit() else 0

    gated(NatsServerLink, "put", before=before_put)
    inner_publish = connection.Connection.publish

    async def publish(self: Any, subject: str, payload: bytes) -> bool:
        found = await inner_publish(self, subject, payload)
        if subject.startswith("fl.down.") and ".chunk." in subject and current["round"]:
            gate.reach("broadcast", current["round"])
        return found

    connection.Connection.publish = publish  # type: ignore[method-assign]

    def asked(_: Any, asks: Any) -> None:
        if asks:
            gate.reach({"open": "join"}.get(asks[0].kind, asks[0].kind), asks[0].round)

    gated(server_link.NatsServerLink, "ask", after=asked)
    gated(
        server_link.NatsServerLink,
        "fetch",
        before=lambda _, answer, limit: gate.reach("upload", int(answer.id.rsplit(".", 3)[1])),
    )
    gated(
        CheckpointFolder,
        "save",
        before=lambda _, progress: gate.reach("commit", progress.round),
        after=lambda _, progress: gate.reach("committed", progress.round),
    )
