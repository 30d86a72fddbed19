"""Rules on what cannot be had where the server has no rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from fedloom.config.rules.rule import Finding, TaskInfo
from fedloom.config.schema import ColumnPartition, Experiment

__all__ = ["remote_fit"]


def remote_fit(e: Experiment, methods: Iterable[Any], task: TaskInfo | None) -> Iterator[Finding]:
    """What an experiment asks, or one of its methods, that `engine: remote` cannot give."""
    if e.engine.kind != "remote":
        return
    data, methods = e.data, list(methods)
    if data.held_out:
        what = f"the server of a remote run has no rows of which a share of {data.held_out:g} could be held out"
        fix = "Set data.held_out: 0; the clients judge the model on their own validation rows"
        yield Finding("data.held_out", what, fix)
    if not isinstance(data.partition, ColumnPartition) or data.partition.clients is not None:
        what = "the clients of a remote run are those of the federation, and their rows are where they are"
        fix = "Set data.partition: {kind: column, column: NAME}, which a local run deals rows by"
        yield Finding("data.partition", what, fix)
    if data.unseen_clients:
        yield Finding("data.unseen_clients", "every client of a remote run trains", "Take it out")
    if task is not None and task.label_field is not None and not data.labels:
        what = "the server has no rows to read the labels from, and all clients must number them alike"
        yield Finding("data.labels", what, "Give them: data.labels: {VALUE: NAME, ...}")
    if e.federation.weighting.kind not in ("samples", "tokens", "steps", "uniform"):
        what = f"what a client weighs by {e.federation.weighting.kind} follows from rows or code that only one side has"
        yield Finding("federation.weighting", what, "Set samples, tokens, steps or uniform")
    if e.federation.yardsticks:
        what = "yardsticks pool the clients' rows or train each alone, which a remote run does not"
        yield Finding("federation.yardsticks", what, "Take them out")
    if any(getattr(m, "pooled", False) for m in methods):
        what = "all rows in one place is what a remote run is to avoid"
        yield Finding("algorithm", what, "Choose a federated algorithm")
    own = [found for m in methods if (found := getattr(m, "layers", lambda _: None)(e)) is not None]
    if getattr(own[0] if own else e.layers, "seen_by", None) == "held_out":
        what = "the server has no rows of its own to score layers with"
        yield Finding("algorithm" if own else "layers.seen_by", what, "Set seen_by: clients")
    if e.local.grouping == "grouped":
        yield Finding("local.grouping", "every client of a remote run trains alone", "Set in_place, or take it out")
