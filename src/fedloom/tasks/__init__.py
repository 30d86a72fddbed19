"""What a batch is, what is minimised and what is measured. This index imports no tensor library, so `validate` stays quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom.config.reference import is_reference, load_attribute
from fedloom.errors import UsageError, nearest

if TYPE_CHECKING:
    from fedloom.tasks.base import Task

__all__ = ["TASKS", "TaskInfo", "catalogue", "describe", "load"]


@dataclass(frozen=True)
class TaskInfo:
    """What an experiment file must know of a task: its fields, its metrics, which field is the label."""

    reference: str
    title: str
    required_fields: tuple[str, ...]
    optional_fields: tuple[str, ...]
    metrics: tuple[str, ...]
    label_field: str | None = None
    uses_templates: bool = False
    list_fields: tuple[str, ...] = ()
    """Fields that may hold a list or a mapping, or be empty."""


TASKS: Mapping[str, TaskInfo] = {
    "causal_lm": TaskInfo(
        "fedloom.tasks.causal_lm:CausalLM",
        "Instruction tuning: the loss is on the answer's tokens only",
        required_fields=("instruction", "output"),
        optional_fields=("input",),
        metrics=("token_accuracy", "perplexity"),
        uses_templates=True,
    ),
    "classification": TaskInfo(
        "fedloom.tasks.classification:Classification",
        "One label for a text, or for a pair of texts",
        required_fields=("text", "label"),
        optional_fields=("text_pair",),
        metrics=("accuracy", "macro_f1", "mcc"),
        label_field="label",
    ),
    "span_qa": TaskInfo(
        "fedloom.tasks.span_qa:SpanQA",
        "The part of a text that answers a question, as in SQuAD",
        required_fields=("question", "context", "answer"),
        optional_fields=("answer_start",),
        metrics=("exact_match", "f1"),
        list_fields=("answer", "answer_start"),
    ),
}


def describe(name: str, base: Path) -> TaskInfo:
    """The facts of a task, by name or `module:attribute` (the attribute is a `Task` class with an `info`)."""
    if name in TASKS:
        return TASKS[name]
    if is_reference(name):
        info = getattr(load_attribute(name, base), "info", None)
        if isinstance(info, TaskInfo):
            return info
        raise UsageError(f"{name!r} has no `info`", fix="give the class `info = fedloom.tasks.TaskInfo(...)`")
    raise UsageError(f"there is no task {name!r}", fix=nearest(name, list(TASKS)))


def load(name: str, base: Path) -> type[Task]:
    """The class of a task."""
    reference = TASKS[name].reference if name in TASKS else name
    task: type[Task] = load_attribute(reference, base)  # type: ignore[assignment]
    return task


def catalogue() -> list[dict[str, Any]]:
    """Name and title of every task in the tree."""
    return [{"name": name, "title": info.title, "metrics": list(info.metrics)} for name, info in TASKS.items()]
