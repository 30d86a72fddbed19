"""A whole small federation for a drill: broker, coordinator, clients as processes, wires between them, and what it ends in."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import nats
import psutil
from drill_parties import Party, run_party
from drill_processes import processes
from drill_proxy import Proxy
from drill_reference import CLIENTS, experiment_text, reference, write_project

from fedloom.deployment.jobs import Job, Jobs
from fedloom.engines.remote.authority import new_nkey
from fedloom.engines.remote.broker import Broker
from fedloom.engines.remote.definition import read_plan
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.engines.remote.kit import connect_options, read_kit

__all__ = ["Drill", "Moment"]

COORDINATOR = "coordinator"
LEASE = 1.0
LONG = 60.0
"""Seconds of a round's deadline where nobody is to be dropped, and of every wait: a loaded machine may take its time."""

Moment = tuple[str, str, int]
"""A party reaches a phase of a round."""


class Process:
    """One party's process, and the pipe to its gates."""

    def __init__(self, party: Party) -> None:
        self.party = party
        context = processes()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=run_party, args=(party, theirs), name=party.name)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid


class Drill:
    """A federation with one job; everything that is started ends with the block.

    own_broker: whether the coordinator starts the broker, as `fedloom serve` does; else it is apart, as an organisation's own.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rounds: int = 3,
        deadline: float = LONG,
        quorum: int | None = None,
        lease: float = LEASE,
        own_broker: bool = False,
        mischief: Mapping[str, Sequence[tuple[str, Any]]] | None = None,
        disk: float | None = None,
        **changes: Any,
    ) -> None:
        self.folder, self.rounds, self.lease, self.own_broker = folder, rounds, lease, own_broker
        self.changes = changes
        self.at: dict[Moment, Callable[[], Any]] = {}
        self.mischief = dict(mischief or {})
        self.processes: dict[str, Process] = {}
        self.exits: list[tuple[str, int | None]] = []
        self.reached: list[Moment] = []
        self.revive = True
        """Whether who ends is started again, as a service manager does; but for who was ended by `end`."""
        self._later: list[tuple[float, int, Callable[[], Any]]] = []
        self._numbers = itertools.count()
        self._started: list[int] = []
        plan = folder / "fed.yaml"
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        more = f", disk: {disk}" if disk is not None else ""
        plan.write_text(
            f"name: drill\nbroker: {{host: 127.0.0.1, port: {port}{more}}}\nclients: [{', '.join(CLIENTS)}]\n"
        )
        self.federation = FederationFolder.create(read_plan(plan), folder / "federation", folder)
        self.broker = Broker(read_kit(self.federation.coordinator))
        self.wires = {name: Proxy(port) for name in (COORDINATOR, *CLIENTS)}
        self.parties = {name: self._party(name) for name in (COORDINATOR, *CLIENTS)}
        engine = {"kind": "remote", "threads": 1, "device": "cpu", "round_deadline": deadline, "quorum": quorum}
        text = experiment_text(rounds=rounds, engine=engine, **changes)
        self.jobs = Jobs(folder / COORDINATOR / "jobs")
        self.jobs.submit(text, "drill", "key")

    def _party(self, name: str) -> Party:
        """Its folder, and its kit as it would be sent, its wire in place of the way to the broker."""
        home = self.folder / name
        kit = home / "kit"
        home.mkdir()
        write_project(home, None if name == COORDINATOR else name)
        source = self.federation.coordinator if name == COORDINATOR else self.federation.path / "kits" / name
        shutil.copytree(source, kit)
        facts = json.loads((kit / "kit.json").read_text())
        facts["urls"] = [f"tls://127.0.0.1:{self.wires[name].port}"]
        if name == COORDINATOR and not self.own_broker:
            facts["broker"] = None
        (kit / "kit.json").write_text(json.dumps(facts))
        return Party(name, kit, home, self.lease)

    def __enter__(self) -> Drill:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.processes.values():
            if each.process.is_alive():
                os.kill(each.pid, signal.SIGKILL)
                each.process.join()
        if self.broker.pid is not None:
            os.kill(self.broker.pid, signal.SIGCONT)
        self.broker.stop()
        for wire in self.wires.values():
            wire.close()

    # -- what is done to it

    def swap_secret(self, name: str) -> None:
        """A party has a key that is whole, but not in the federation."""
        kit = self.parties[name].kit
        seed, public = new_nkey()
        (kit / "secret.nk").write_bytes(seed + b"\n")
        facts = json.loads((kit / "kit.json").read_text())
        (kit / "kit.json").write_text(json.dumps(facts | {"key": public}))

    def begin(self, name: str, **changes: Any) -> None:
        """Start a party's process."""
        party = replace(self.parties[name], **changes)
        gates = [
            (phase, round) for who, phase, round in self.at if who == name and (who, phase, round) not in self.reached
        ]
        self.processes[name] = Process(replace(party, gates=gates, mischief=self.mischief.get(name, ())))
        self._started.append(self.processes[name].pid)

    def later(self, seconds: float, act: Callable[[], Any]) -> None:
        """Do something after a while, while the drill goes on."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))

    def kill(self, name: str, back: float | None = 0.2) -> None:
        """kill -9; it comes back after so many seconds, or never."""
        process = self.processes.pop(name)
        os.kill(process.pid, signal.SIGKILL)
        process.process.join(10)
        self.exits.append((name, process.process.exitcode))
        if back is not None:
            self.later(back, lambda: self.begin(name))

    def hang(self, name: str, seconds: float | None) -> None:
        """It stops where it is, and goes on after so many seconds, or never."""
        pid = self.processes[name].pid
        os.kill(pid, signal.SIGSTOP)
        _await_stop(pid)
        if seconds is not None:
            self.later(seconds, lambda: os.kill(pid, signal.SIGCONT))

    def kill_broker(self, back: float = 0.2) -> None:
        """kill -9 of the broker; the same store is served again after so many seconds."""
        pid = self.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.broker.stop()
        self.later(back, self.broker.start)

    def hang_broker(self, seconds: float) -> None:
        """The broker stops where it is, and goes on after so many seconds."""
        pid = self.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        _await_stop(pid)
        self.later(seconds, lambda: os.kill(pid, signal.SIGCONT))

    def cut(self, *names: str, seconds: float | None = 0.7) -> None:
        """The wires of these parties are cut, and mended after so many seconds, or never."""
        for name in names:
            self.wires[name].cut()
            if seconds is not None:
                self.later(seconds, self.wires[name].mend)

    def add_coordinator(self) -> str:
        """Another coordinator of the same federation, with a folder of its own and no job; its name."""
        name = f"{COORDINATOR}-2"
        home = self.folder / name
        home.mkdir()
        self.parties[name] = replace(self.parties[COORDINATOR], name=name, folder=home)
        return name

    def fill_uploads(self, name: str, seconds: float) -> None:
        """The broker has no room for a client's uploads, for so many seconds."""

        async def bound(size: int) -> None:
            client = await nats.connect(**connect_options(read_kit(self.parties[COORDINATOR].kit)))
            stream = await client.jetstream().stream_info(f"UP_{name}")
            await client.jetstream().update_stream(stream.config, max_bytes=size)
            await client.close()

        asyncio.run(bound(1))
        self.later(seconds, lambda: asyncio.run(bound(1 << 30)))

    # -- how it goes

    def start(self) -> None:
        """Start everyone who is not there."""
        if not self.own_broker:
            self.broker.start()
        for name in (COORDINATOR, *CLIENTS):
            if name not in self.processes:
                self.begin(name)

    def play(self, timeout: float = LONG * 2) -> Job:
        """Start everyone who is not there, and go on until the job is over."""
        self.start()
        return self.until(self._over, timeout)

    def until(self, true: Callable[[], Any], timeout: float = LONG * 2) -> Any:
        """Go on until something is true, which is returned; parties at gates are served meanwhile."""
        end = time.monotonic() + timeout
        while not (found := true()):
            assert time.monotonic() < end, f"not over in {timeout} seconds: {self.tails()}"
            self._step()
        return found

    def _over(self) -> Job | None:
        job = self.jobs.find(1)
        assert job is not None
        return job if job.over else None

    def _step(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        by_pipe = {each.pipe: each for each in self.processes.values()}
        ends = {each.process.sentinel: each for each in self.processes.values()}
        for ready in wait([*by_pipe, *ends], timeout=0.02):
            if isinstance(ready, Pipe):
                self._serve(by_pipe[ready])
            else:
                self._ended(ends[ready])  # type: ignore[index]

    def _serve(self, each: Process) -> None:
        """A party is at a gate: what was planned for this moment happens, then it goes on, if it can."""
        try:
            phase, round = each.pipe.recv()
        except (EOFError, OSError):
            self._ended(each)
            return
        moment = (each.party.name, phase, round)
        self.reached.append(moment)
        self.at[moment]()
        try:
            each.pipe.send("go")
        except OSError:
            return  # it was killed

    def _ended(self, each: Process) -> None:
        name = each.party.name
        each.process.join(10)
        if self.processes.get(name) is not each:
            return
        del self.processes[name]
        self.exits.append((name, each.process.exitcode))
        if self.revive:
            self.later(0.3, lambda: self.begin(name))

    def _ask_where(self) -> None:
        """Who is still there writes where it is."""
        for each in self.processes.values():
            os.kill(each.pid, signal.SIGUSR1)

    # -- how it ended

    @property
    def run(self) -> Path:
        """The run directory."""
        return next((self.folder / COORDINATOR / "runs" / "000001").glob("*/manifest.json")).parent

    def lines(self, name: str) -> list[dict[str, Any]]:
        """A record file of the run."""
        path = self.run / f"{name}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def dropped(self) -> set[tuple[str, int]]:
        """Who was left out of which round."""
        return {(line["client"], line["round"]) for line in self._reports if line["status"] == "dropped"}

    @property
    def _reports(self) -> list[dict[str, Any]]:
        """What each client's rounds came to."""
        return [line for line in self.lines("clients") if "status" in line]

    @property
    def trained(self) -> Counter[tuple[str, int]]:
        """How often each client has trained each round, all its processes together."""
        found: Counter[tuple[str, int]] = Counter()
        for name in CLIENTS:
            found.update((name, round) for round in self.noted(name, "trained"))
        return found

    def noted(self, name: str, key: str) -> list[Any]:
        """What was written into a party's own record of the drill."""
        path = self.folder / name / "drill.jsonl"
        lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
        return [line[key] for line in lines if key in line]

    def said(self, name: str) -> str:
        """What a party's processes have written."""
        path = self.folder / name / "out.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def tails(self) -> str:
        """The end of what everyone said."""
        return "\n".join(f"--- {name}\n{self.said(name)[-2500:]}" for name in (COORDINATOR, *CLIENTS))

    def check(
        self,
        dropped: Iterable[tuple[str, int]] = (),
        reasons: Mapping[tuple[str, int], str] | None = None,
        without: Iterable[str] = (),
    ) -> None:
        """The outcome of every round is recorded, and the adapter is that of a local run of those who answered."""
        expected = set(dropped)
        job = self.jobs.find(1)
        assert job is not None and job.state == "finished", f"{job}\n{self.tails()}"
        assert self.dropped == expected, f"{self.dropped} were dropped\n{self.tails()}"
        members = [name for name in CLIENTS if name not in without]
        metrics = self.lines("metrics")
        assert [line["round"] for line in metrics] == list(range(self.rounds + 1))
        for line in metrics[1:]:
            out = sum(round == line["round"] for _, round in expected)
            assert (line["clients"], line["dropped"]) == (len(members) - out, out)
        records = [(line["client"], line["round"]) for line in self._reports]
        assert sorted(records) == sorted((name, r + 1) for name in members for r in range(self.rounds))
        drops = [line for line in self.lines("events") if line["kind"] == "drop"]
        for name, round in expected:
            texts = [line["text"] for line in drops if line["round"] == round and line["text"].startswith(f"{name}: ")]
            assert texts, f"no event tells that {name} was dropped in round {round}: {drops}"
            wanted = (reasons or {}).get((name, round), "")
            assert any(wanted in text for text in texts), texts
        manifest = json.loads((self.run / "manifest.json").read_text())
        right = reference(self.rounds, frozenset(expected), tuple(members), **self.changes)
        assert manifest["adapter_sha256"] == right, f"another adapter\n{self.tails()}"

    def end(self) -> None:
        """Everyone is asked to end, and does; nothing is left running."""
        self.revive = False
        self._later.clear()
        for wire in self.wires.values():
            wire.mend()
        for each in self.processes.values():
            os.kill(each.pid, signal.SIGCONT)
            os.kill(each.pid, signal.SIGTERM)
        ended = dict(self.processes)
        self.later(LONG / 2, self._ask_where)
        self.until(lambda: not self.processes, LONG)
        codes = {name: each.process.exitcode for name, each in ended.items()}
        assert not any(codes.values()), f"{codes}\n{self.tails()}"
        self.broker.stop()
        assert not [pid for pid in self._started if psutil.pid_exists(pid)]
        servers = [
            p
            for p in psutil.process_iter(["cwd", "cmdline"])
            if p.info["cwd"] and p.info["cwd"].startswith(str(self.folder))
        ]
        assert not servers, servers


def _await_stop(pid: int) -> None:
    """A signal to stop takes effect a moment later, thread by thread."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
        ]
        if set(states) <= {"T", "t", "Z"}:
            return
        time.sleep(0.005)
    raise AssertionError(f"process {pid} does not stop")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
