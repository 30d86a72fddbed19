"""What a rule is, and what it may know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from fedloom.config.schema import Experiment

__all__ = [
    "DATA_SUFFIXES",
    "PARTITION_SUFFIXES",
    "RULES",
    "Facts",
    "Finding",
    "Rule",
    "SampleInfo",
    "TaskInfo",
    "clients_of",
    "repeated",
    "rule",
    "tests_given",
    "unjudged",
]


DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".h5", ".hdf5")
PARTITION_SUFFIXES = (".h5", ".hdf5")
"""Partition files that hold several methods, each with test rows."""


class TaskInfo(Protocol):
    """What the rules need to know about a task."""

    @property
    def required_fields(self) -> tuple[str, ...]: ...
    @property
    def optional_fields(self) -> tuple[str, ...]: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def label_field(self) -> str | None: ...
    @property
    def uses_templates(self) -> bool: ...


class SampleInfo(Protocol):
    """What the rules need to know about a packaged sample."""

    @property
    def columns(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Facts:
    """What is known beside the file: the task, how samples are looked up, where paths start, what is wrong already."""

    task: TaskInfo | None
    sample: Callable[[str, Literal["model", "dataset"]], SampleInfo] | None
    base: Path
    faulty: frozenset[tuple[str | int, ...]]
    synchronous: bool = False
    """Whether the algorithm is known to wait for its whole cohort."""


class Finding(NamedTuple):
    """One mistake found by a rule."""

    key: str
    what: str
    fix: str | None = None


Rule = Callable[[Experiment, Facts], Iterator[Finding]]
RULES: list[tuple[tuple[str, ...], Rule]] = []


def rule(*reads: str) -> Callable[[Rule], Rule]:
    """A rule over some keys."""

    def register(function: Rule) -> Rule:
        RULES.append((reads, function))
        return function

    return register


def repeated(key: str, names: list[Any]) -> Iterator[Finding]:
    """A mistake where a name is given twice."""
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        yield Finding(key, f"{', '.join(twice)} is given twice", "Keep one of them")


def clients_of(e: Experiment) -> int | None:
    """How many clients there will be; None where only the rows tell."""
    return getattr(e.data.partition, "clients", None)


def tests_given(e: Experiment) -> bool:
    """Whether the partition brings test rows of its own, which are then the held-out ones."""
    return getattr(e.data.partition, "method", None) is not None


def unjudged(e: Experiment) -> bool:
    """Whether the watched metric is one of rows that nobody holds out; clients elsewhere hold out their own."""
    judged = e.data.validation if e.engine.kind == "remote" else e.data.held_out
    return judged == 0 and e.evaluation.metric.startswith("eval_")
