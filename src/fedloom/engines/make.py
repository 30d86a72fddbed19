"""The engine that an experiment names, and what it needs ready. Engines are imported where they are used: some are extras."""

from __future__ import annotations

from fedloom.config.schema import Experiment
from fedloom.engines.base import Engine
from fedloom.engines.remote.link import ServerLink
from fedloom.engines.worker import prepare as prepare_here
from fedloom.errors import UsageError
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore

__all__ = ["make_engine", "prepare"]


def prepare(experiment: Experiment, link: ServerLink | None = None) -> Prepared:
    """The experiment with model and data loaded; with `engine: remote`, the data is what clients say of theirs over `link`.

    Raises FedloomError for whatever in them is not as the experiment says.
    """
    return prepare_here(experiment)


def make_engine(prepared: Prepared, store: ClientStore, link: ServerLink | None = None) -> Engine:
    """The engine of a prepared run; what it starts is ended by its `close`.

    Raises UsageError where it cannot be had here.
    """
    match prepared.experiment.engine.kind:
        case "local":
            from fedloom.engines.local import LocalEngine

            return LocalEngine(prepared, store)
        case kind:
            raise UsageError(f"`engine: {kind}` cannot be run by this version", where="engine", fix="use `local`")
