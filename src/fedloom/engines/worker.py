"""A process that trains groups for an engine: it holds the base model once, and folds before it answers.

`Worker` is what any engine needs. `serve` is the other end of `engines/pool.py`: a process of this machine that answers, one
message after the other, until the connection ends. Both trust each other; nothing of it comes from outside this machine.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedloom import algorithms, errors, selection
from fedloom.config.schema import Experiment
from fedloom.engines.group import Assignment, GroupResult, run_group
from fedloom.engines.layers import make_choice
from fedloom.engines.memory import peak_memory
from fedloom.engines.sizing import size_groups
from fedloom.errors import FedloomError, RunError
from fedloom.local.prepare import Prepared
from fedloom.local.prepare import prepare as prepare_with
from fedloom.local.scores import with_proxy
from fedloom.local.store import ClientStore
from fedloom.local.train import make_trainer
from fedloom.vector.lora import Product

__all__ = ["Worker", "as_arrays", "as_tensors", "error_of", "identity", "prepare", "serve", "told"]


def prepare(experiment: Experiment) -> Prepared:
    """An experiment made ready under its own algorithm.

    Raises FedloomError for whatever in data or model is not as the experiment says.
    """
    algorithm = algorithms.build(experiment.algorithm, experiment.base)
    prepared = with_proxy(prepare_with(experiment, algorithm)).with_algorithm(algorithm)
    make_choice(prepared)  # layers that the model has not are refused now
    selector = selection.resolve(experiment.federation.selection["name"], experiment.base)
    return replace(prepared, sample_losses=selector.needs_losses)


def identity(prepared: Prepared) -> dict[str, str]:
    """Digests of what all processes of a run must hold alike."""
    return {
        "base model": prepared.base,
        "trainable parameters": prepared.binding.layout.digest,
        "partition": prepared.train.digest,
        "data": prepared.table.digest,
    }


class Worker:
    """Runs groups of an experiment, one at a time; the clients' states are in a folder that all workers see."""

    def __init__(self, prepared: Prepared, store: ClientStore) -> None:
        self.prepared = prepared
        self._store = store
        self._trainer = make_trainer(prepared, size_groups(prepared).grouped)

    @classmethod
    def open(cls, experiment: Experiment, folder: Path) -> Worker:
        """A worker that loads model and data itself."""
        return cls(prepare(experiment), ClientStore(folder))

    def fold(self, products: Mapping[str, Product]) -> None:
        """Add to the base weights what the server has added to its own: `Binding.folded` of the process that holds its state."""
        self.prepared.binding.fold(products)

    def run(self, work: Assignment, clients: Sequence[int], keep_from: int) -> GroupResult:
        """The result of a group; `keep_from` is the oldest round that the run may still be resumed from."""
        self._store.keep_from = keep_from
        return run_group(self.prepared, self._store, self._trainer, work, clients)

    @property
    def peak_memory(self) -> int:
        """Bytes that this process has held at most, so far; asking takes as long as a few vectors do, so ask once a message."""
        return peak_memory(self.prepared.binding.device)

    def notes(self) -> list[str]:
        """What there is to know of how groups were trained, each once."""
        notes, self._trainer.notes = self._trainer.notes, []
        return notes


def serve(handle: int) -> None:
    """Answer the messages on a connection until it ends; a process is started with nothing else to do.

    An answer is ("done", value) or ("failed", its class, arguments and attributes). A message is one of

        ("open", experiment, folder, gpu)       the digests of what was loaded
        ("fork", threads), then a handle        the id of a process that holds the same and answers there
        ("end", id)                             the exit code of such a process, killed if it has not ended
        ("run", work, products, clients, keep)  the group's result and the notes; None is what was sent before
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whether Ctrl-C stops the run, its first process decides
    server = _Server(Connection(handle))
    while True:
        try:
            message = server.connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        answer = _answer(server, *message)
        if answer is not None:
            with suppress(OSError):  # then the next message fails too
                server.connection.send(answer)


def _answer(server: _Server, kind: str, *facts: Any) -> tuple[Any, ...] | None:
    """What is answered; a process that has just come into being has not been asked."""
    try:
        do: Callable[..., Any] = getattr(server, kind)
        value = do(*facts)
    except Exception as error:
        return told(error)
    return None if kind == "fork" and value == 0 else ("done", value)


def told(error: Exception) -> tuple[Any, ...]:
    """An error as a message: its class in `fedloom.errors`, for a user's own may not be known at the other end."""
    text = f"In a worker process:\n{traceback.format_exc()}"
    if not isinstance(error, FedloomError):
        error = RunError(f"a worker process failed: {type(error).__name__}: {error}")
    error.add_note(text)
    known = next(c for c in type(error).__mro__ if c.__module__ == errors.__name__)
    return "failed", known, error.args, vars(error)


def error_of(known: type[FedloomError], arguments: tuple[Any, ...], attributes: dict[str, Any]) -> FedloomError:
    """The error that was told, from what comes after the word."""
    error = known.__new__(known, *arguments)
    vars(error).update(attributes)
    return error


class _Server:
    """The messages of `serve`, a method each."""

    def __init__(self, connection: Connection) -> None:
        self._worker: Worker | None = None
        self._work: Assignment | None = None
        self._meet(connection)

    def _meet(self, connection: Connection) -> None:
        self.connection = connection
        threading.Thread(target=_end_with, args=(connection.fileno(),), daemon=True).start()

    def open(self, experiment: Experiment, folder: Path, gpu: int | None) -> dict[str, str]:
        if gpu is not None:
            torch.cuda.set_device(gpu)
        self._worker = Worker.open(experiment, folder)
        return identity(self._worker.prepared)

    def fork(self, threads: int) -> int:
        handle = recv_handle(self.connection)
        child = os.fork()
        if child:
            os.close(handle)
            return child
        self.connection.close()
        self._meet(Connection(handle))
        torch.set_num_threads(threads)
        return 0

    def end(self, child: int) -> int:
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def run(self, work: Any, products: Any, clients: Sequence[int], keep_from: int) -> tuple[GroupResult, list[str]]:
        assert self._worker is not None
        if products is not None:
            self._worker.fold(as_tensors(products))
        if work is not None:
            self._work = as_tensors(work)
        assert self._work is not None
        result = self._worker.run(self._work, clients, keep_from)
        return as_arrays(replace(result, peak_memory=self._worker.peak_memory)), self._worker.notes()


def _end_with(handle: int) -> None:
    """End this process, whatever it is doing, when the other end of its connection is gone."""
    poll = select.poll()
    poll.register(handle, 0)  # that the other end has hung up is always told
    poll.poll()
    os._exit(0)


def as_arrays(value: Any) -> Any:
    """The same with arrays for its tensors, however deep: what goes through a pipe as bytes, and needs no shared memory."""
    return _changed(value, Tensor, lambda tensor: tensor.detach().cpu().numpy())


def as_tensors(value: Any) -> Any:
    """The same with tensors for its arrays, in memory of torch's own: how kernels begin depends on where that is aligned."""
    return _changed(value, np.ndarray, lambda array: torch.from_numpy(array).clone())


def _changed(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(own, kind, change) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(own, kind, change) for own in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _changed(getattr(value, f.name), kind, change) for f in fields(value)})
    return value
