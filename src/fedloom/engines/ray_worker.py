"""The worker of `engine: ray`, in a process that Ray started: it holds the base model once, and folds before it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedloom.config.schema import Experiment
from fedloom.engines.group import Assignment, GroupResult
from fedloom.engines.worker import Worker, identity, prepare, told
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.vector.lora import Product

__all__ = ["Actor", "Answer", "Landed", "Shared", "State", "facts", "tensors_as_arrays"]

State = dict[str, Tensor]
Shared = tuple[Tensor, Mapping[str, Tensor], Mapping[str, Product]]
"""What all groups of a round are given: the vector, what goes beside it, and what the base weights have had added."""


class Landed(NamedTuple):
    """A group's result, and what its clients keep: their names, the round as of which, their states."""

    result: GroupResult
    kept: list[tuple[str, int, State]]


class Answer(NamedTuple):
    """What a worker says before its results are fetched: how many there are, the error that stopped it, what is worth knowing."""

    results: int
    failed: tuple[Any, ...] | None
    notes: list[str]
    seconds: float
    """What the groups took."""


class _Carried(ClientStore):
    """What the clients of a group keep, on the way: given with the group, handed back with its result."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.given: Mapping[str, State] = {}
        self.saved: list[tuple[str, int, State]] = []

    def load(self, client: str, before: int) -> State | None:
        return self.given.get(client)

    def save(self, client: str, round: int, state: State) -> None:
        own = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
        self.saved.append((client, round, own))  # a copy, for the next group of the message uses the same memory again


class Actor:
    """A worker, in a process that Ray started."""

    def __init__(self) -> None:
        self._ray = import_module("ray")
        self._store = _Carried()
        tensors_as_arrays(self._ray)

    def place(self) -> None:
        """Answered once there is room for this worker."""

    def open(self, experiment: Experiment) -> tuple[Any, ...]:
        """Load the experiment; answers with the digests of what it is, and the node."""
        try:
            prepared = prepare(experiment)
            self._worker = Worker(prepared, self._store)
        except Exception as error:
            return told(error)
        return "done", facts(prepared), self._ray.util.get_node_ip_address()

    def run(
        self, shared: Sequence[Any], rest: Assignment, groups: Sequence[tuple[Sequence[int], Mapping[str, State]]]
    ) -> tuple[Answer, list[Landed]]:
        """Groups, each with its clients' states, one after the other until one fails; `shared` is empty when it is what it was."""
        landed: list[Landed] = []
        failed, started = None, time.perf_counter()
        try:
            for ref in shared:
                self._w, self._server, products = self._ray.get(ref)
                self._worker.fold(products)
            work = replace(rest, w=self._w, server=self._server)
            for clients, states in groups:
                self._store.given, self._store.saved = states, []
                landed.append(Landed(self._worker.run(work, clients, 0), self._store.saved))
            last = replace(landed[-1].result, peak_memory=self._worker.peak_memory)
            landed[-1] = landed[-1]._replace(result=last)
        except Exception as error:
            failed = told(error)
        return Answer(len(landed), failed, self._worker.notes(), time.perf_counter() - started), landed


def facts(prepared: Prepared) -> dict[str, str]:
    """What must be alike in all processes of a run for the same bytes to come out."""
    return {name: version(name).partition("+")[0] for name in ("fedloom", "torch")} | identity(prepared)


def tensors_as_arrays(ray: Any) -> None:
    """Let tensors travel as arrays, which Ray does not copy; they arrive in memory of torch's own, which may be written to."""
    ray.util.register_serializer(Tensor, serializer=lambda t: t.detach().cpu().numpy(), deserializer=torch.tensor)
