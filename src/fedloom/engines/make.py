"""The engine that an experiment names."""

from __future__ import annotations

from fedloom.engines.base import Engine
from fedloom.engines.local import LocalEngine
from fedloom.errors import UsageError
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["make_engine"]


def make_engine(prepared: Prepared, store: ClientStore) -> Engine:
    """The engine of a prepared run; what it starts is ended by its `close`.

    Raises UsageError where it cannot be had here.
    """
    kind = prepared.experiment.engine.kind
    if kind != "local":
        raise UsageError(f"`engine: {kind}` cannot be run by this version", where="engine", fix="use `local`")
    return LocalEngine(prepared, store)
