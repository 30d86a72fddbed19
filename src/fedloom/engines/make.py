"""The engine that an experiment names. Engines are imported where they are used: some are extras."""

from __future__ import annotations

from fedloom.engines.base import Engine
from fedloom.engines.remote.link import ServerLink
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["make_engine"]


def make_engine(prepared: Prepared, store: ClientStore, link: ServerLink | None = None) -> Engine:
    """The engine of a prepared run; what it starts is ended by its `close`.

    Raises UsageError where it cannot be had here.
    """
    match prepared.experiment.engine.kind:
        case "local":
            from fedloom.engines.local import LocalEngine
            from fedloom.engines.pool import PoolEngine, count_workers

            workers = count_workers(prepared.experiment.engine, prepared.binding.device)
            return LocalEngine(prepared, store) if workers == 1 else PoolEngine(prepared, store, workers)
        case "ray":
            from fedloom.engines.ray import RayEngine

            return RayEngine(prepared, store)
        case "remote":
            from fedloom.engines.remote.engine import RemoteEngine
            from fedloom.engines.remote.standin import RemotePrepared

            assert isinstance(prepared, RemotePrepared) and link is not None  # as `prepare` of the run has seen to
            return RemoteEngine(prepared, store, link)
