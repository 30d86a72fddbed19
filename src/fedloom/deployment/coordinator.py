"""The coordinator: does the jobs, one after the other, and tells the operator how they fare.

It can be killed at any instant: a job that was under way is resumed from its last checkpoint, and what clients had answered by then
is still at the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from fedloom import api
from fedloom.deployment.control import Logs, Reply, Status, Stop, Submit, read_request
from fedloom.deployment.jobs import Job, Jobs
from fedloom.engines.remote.link import ServerLink, Unreachable
from fedloom.errors import FedloomError

__all__ = ["Coordinator"]

_log = logging.getLogger("fedloom.coordinator")
_MOST_LINES = 500
_LOOK = 0.5  # seconds between looks at the link and at whether to stop, while there is nothing to do
_PROGRESS = ("round", "clients", "dropped", "train_loss", "bytes_up", "bytes_down", "tokens", "seconds")


class Coordinator:
    """Serves one federation from a folder: `jobs/` and `runs/`."""

    def __init__(self, link: ServerLink, folder: Path, name: str) -> None:
        self._link, self._folder, self._name = link, folder, name
        self.jobs = Jobs(folder / "jobs")
        self._asked = threading.Event()  # there may be a job
        self._draining = False
        self._stop: int | None = None
        self._current: dict[str, Any] = {}
        self.totals = {"rounds": 0, "updates": 0, "dropped": 0, "bytes_up": 0, "bytes_down": 0}
        self._started = time.monotonic()

    def serve(self) -> None:
        """Do jobs until `drain`.

        Raises Unreachable when the broker is away for too long, or another coordinator has the seat: the job goes on at the next
        start.
        """
        while not self._draining:
            job = self.jobs.next()
            if job is None:
                self._link.presence()  # raises when this process can do no more
                self._asked.wait(timeout=_LOOK)
                self._asked.clear()
            else:
                self._do(job)

    def drain(self) -> None:
        """Finish the round that is under way, save, and end `serve`; the job goes on when the coordinator is started again.

        A signal's handler may call it: it takes no lock, for whom it interrupts may hold one.
        """
        self._draining = True

    def answer(self, content: bytes) -> bytes:
        """The reply to an operator's request; called from the link's thread."""
        request = read_request(content)
        try:
            self._link.presence()  # one that has lost its seat takes no jobs
            match request:
                case Submit():
                    reply = self._submit(request)
                case Status():
                    reply = Reply(data=self.status())
                case Stop():
                    reply = self._stop_job(request.job)
                case Logs():
                    reply = self._logs(request)
                case _:
                    reply = Reply(
                        error="this coordinator does not understand the request; is the command of another version?"
                    )
        except (FedloomError, OSError) as error:
            reply = Reply(error=str(error))
        return reply.model_dump_json().encode()

    def status(self) -> dict[str, Any]:
        """Clients, jobs and the round that is under way."""
        online = self._link.presence()
        names = sorted({*self._link.clients, *online})
        return {
            "federation": self._name,
            "uptime_seconds": round(time.monotonic() - self._started, 1),
            "draining": self._draining,
            "clients": [
                {"client": name, "online": name in online}
                | ({"seen_seconds": round(p.seen, 1), "busy": p.busy} if (p := online.get(name)) else {})
                for name in names
            ],
            "jobs": [job.model_dump(exclude={"key"}) for job in self.jobs],
            "current": dict(self._current),
            "totals": dict(self.totals),
        }

    def _do(self, job: Job) -> None:
        """One job, from its start or its last checkpoint."""
        self._stop = None

        def told(_: str, record: dict[str, Any]) -> None:
            self._current |= {"job": job.id} | {key: record[key] for key in _PROGRESS if key in record}
            if record["round"]:
                self.totals["rounds"] += 1
                self.totals["updates"] += record.get("clients", 0)
                for key in ("dropped", "bytes_up", "bytes_down"):
                    self.totals[key] += record.get(key, 0)

        try:
            experiment = api.load(self.jobs.experiment(job), base=self._folder)
            self._current = {"job": job.id, "round": 0, "rounds": experiment.federation.rounds}
            folder = self._folder / "runs" / f"{job.id:06d}"
            again = next((p.parent for p in folder.glob("*/manifest.json")), None)
            job = self.jobs.update(job, state="running")
            _log.info("job %d (%s) %s", job.id, job.name, "goes on" if again else "begins")
            how: dict[str, Any] = {"listeners": [told], "stop_asked": self._stop_asked(job), "link": self._link}
            run = api.resume(again, **how) if again else api.run(experiment, folder, **how)
            if run.finished:
                self.jobs.update(job, state="finished", run=str(run.path))
            elif self._stop == job.id:
                self.jobs.update(job, state="stopped", run=str(run.path))
            _log.info("job %d %s", job.id, "is finished" if run.finished else "has stopped")
        except Unreachable:
            _log.error("job %d is under way; it goes on when the coordinator is started again", job.id)
            raise
        except FedloomError as error:
            _log.error("job %d failed: %s", job.id, error)
            self.jobs.update(job, state="failed", error=str(error))
        finally:
            self._current = {}

    def _stop_asked(self, job: Job) -> Callable[[], bool]:
        return lambda: self._draining or self._stop == job.id

    def _submit(self, request: Submit) -> Reply:
        job = self.jobs.submit(request.text, request.name, request.key)
        _log.info("job %d (%s) was handed over", job.id, job.name)
        self._asked.set()
        return Reply(data={"job": job.id, "state": job.state})

    def _stop_job(self, number: int) -> Reply:
        job = self.jobs.find(number)
        if job is None:
            return Reply(error=f"there is no job {number}")
        if job.state == "queued":
            job = self.jobs.update(job, state="stopped")
        elif job.state == "running":
            self._stop = number
        return Reply(data={"job": number, "state": "stopping" if job.state == "running" else job.state})

    def _logs(self, request: Logs) -> Reply:
        job = self.jobs.find(request.job)
        if job is None:
            return Reply(error=f"there is no job {request.job}")
        log = next((self._folder / "runs" / f"{job.id:06d}").glob("*/log.txt"), None)
        lines = log.read_text(encoding="utf-8").splitlines() if log else []
        new = lines[request.after : request.after + _MOST_LINES]
        data: dict[str, JsonValue] = {"lines": list(new), "next": request.after + len(new)}
        data |= {"over": job.over, "state": job.state, "error": job.error, "run": job.run}
        return Reply(data=data)
