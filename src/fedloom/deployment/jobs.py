"""The experiments handed to a coordinator, on disk, in the order in which they came.

A job is a file `000001.json` beside its experiment `000001.yaml`, written before the operator is told that it was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from fedloom.errors import RunError
from fedloom.files import write_atomic

__all__ = ["Job", "Jobs"]


class Job(BaseModel):
    """One experiment on its way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int
    name: str
    key: str
    """Chosen by the operator: handing the same job over twice makes one."""
    state: Literal["queued", "running", "finished", "stopped", "failed"] = "queued"
    run: str | None = None
    """Its run directory, once it has one."""
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing more will be done about it."""
        return self.state in ("finished", "stopped", "failed")


class Jobs:
    """All jobs of a coordinator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def submit(self, text: str, name: str, key: str) -> Job:
        """Take an experiment, or say which job it already is."""
        known = list(self)
        if same := next((job for job in known if job.key == key), None):
            return same
        job = Job(id=max((job.id for job in known), default=0) + 1, name=name, key=key)
        write_atomic(self.experiment(job), text)
        return self._write(job)

    def __iter__(self) -> Iterator[Job]:
        """In the order in which they came.

        Raises RunError when one cannot be read.
        """
        for path in sorted(self._folder.glob("[0-9]*.json")):
            try:
                yield Job.model_validate_json(path.read_bytes())
            except (OSError, ValidationError) as error:
                fix = "put back its file from a backup, or remove it"
                raise RunError(
                    "a job cannot be read", where=str(path), why=str(error).splitlines()[0], fix=fix
                ) from error

    def next(self) -> Job | None:
        """The job to do: one that was under way when the coordinator ended, else the oldest that waits."""
        waiting = [job for job in self if not job.over]
        return next((job for job in waiting if job.state == "running"), waiting[0] if waiting else None)

    def find(self, number: int) -> Job | None:
        """The job with this number."""
        return next((job for job in self if job.id == number), None)

    def update(self, job: Job, **changes: Any) -> Job:
        """The job with these changes, written down."""
        return self._write(job.model_copy(update=changes))

    def experiment(self, job: Job) -> Path:
        """The job's experiment file."""
        return self._folder / f"{job.id:06d}.yaml"

    def _write(self, job: Job) -> Job:
        write_atomic(self._folder / f"{job.id:06d}.json", job.model_dump_json(indent=1))
        return job
