"""What a coordinator prepares: model and adapter as always, and in place of rows what the clients say that they hold."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom import algorithms, tasks
from fedloom.config.load import dump
from fedloom.config.schema import Experiment, LocalEngine, RemoteEngine
from fedloom.data.partition import Partition, natural
from fedloom.data.table import Table
from fedloom.engines.layers import make_choice
from fedloom.engines.remote.gathering import Gathering, clean
from fedloom.engines.remote.link import Ask, ServerLink
from fedloom.engines.remote.messages import Holding, Open, read_facts, spell
from fedloom.errors import FedloomError, RunError, UsageError
from fedloom.local.prepare import Prepared, PreparedData, prepare_model
from fedloom.models.load import load_tokenizer
from fedloom.tasks.base import Rows

__all__ = ["RemotePrepared", "StandIn", "prepare_again", "prepare_remote"]

_PATIENCE = 1 / 20  # of the round's deadline: for a first client to be online
_TICK = 0.1


@dataclass(frozen=True)
class StandIn(Table):
    """A table without rows: how many there are, and lengths of which only each client's sum is known."""

    given: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64), repr=False)
    summary: str = ""

    @classmethod
    def of(cls, holdings: Mapping[str, Holding]) -> StandIn:
        """Each client's rows side by side, in the order of the clients: those it trains on, then those it judges on."""
        parts = [_lengths(own.tokens, own.rows, own.validation) for own in holdings.values()]
        said = json.dumps({name: own.model_dump() for name, own in holdings.items()}, sort_keys=True)
        given = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        return cls(Path(), given=given, summary=hashlib.sha256(said.encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.given)

    @property
    def digest(self) -> str:
        """SHA-256 of what the clients say that they hold."""
        return self.summary

    @property
    def dropped(self) -> dict[str, int]:
        """The clients keep that to themselves."""
        return {}

    @property
    def truncated(self) -> int:
        """As above."""
        return 0

    @property
    def source_rows(self) -> int:
        return len(self)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row `[rows]`, of which each client's sum is true."""
        return self.given

    def codes(self, name: str) -> tuple[NDArray[np.int32], list[str]]:
        """One code for all rows: nothing is known of what they hold."""
        return np.zeros(len(self), dtype=np.int32), ["rows"]


@dataclass(frozen=True)
class RemotePrepared(Prepared):
    """An experiment made ready for clients elsewhere."""

    run: str = field(kw_only=True)
    """By which clients know it; the same when it is resumed."""
    holdings: Mapping[str, Holding] = field(kw_only=True)
    """What each client says that it holds, in their order."""
    said: list[str] = field(default_factory=list, kw_only=True)
    """What there is to know of how it was opened."""

    @property
    def record(self) -> dict[str, Any]:
        """What a manifest keeps of it: enough for `prepare_again`, and for a run that is resumed to ask the same clients."""
        return {"run": self.run, "clients": {name: own.model_dump() for name, own in self.holdings.items()}}


def prepare_remote(
    experiment: Experiment, link: ServerLink, run: str, clients: Sequence[str] | None = None
) -> RemotePrepared:
    """Load the model, and let every client make itself ready.

    run: by which clients know this run, 1 to 64 letters, digits, `-` and `_`; a run that is resumed has the same. clients: those
    of the federation, whether they are online or not, and those it began with when it is resumed; whoever is online when left out.
    Raises UsageError for an experiment that cannot be had without rows, RunError when no client is online, and when one refuses or
    does not answer and the policy is to stop.
    """
    if experiment.data.limit is not None:  # a client's own file may have one
        what, fix = "the first rows of all clients together are nowhere", "take it out; a client may set one for itself"
        raise UsageError(what, where="data.limit", fix=fix)
    algorithm = algorithms.build(experiment.algorithm, experiment.base)
    names = sorted(clients if clients is not None else _online(experiment, link), key=natural)
    _check_online(experiment, link, names)
    alike = _without_ranks(experiment)  # which client has which rank follows from who there is
    model = prepare_model(_data(alike, {}), algorithm)
    holdings, said = _open(experiment, model, link, run, names)
    return _prepared(experiment, model, run, holdings, said)


def prepare_again(experiment: Experiment, record: Mapping[str, Any]) -> RemotePrepared:
    """The same without asking anyone, from `RemotePrepared.record`: for whatever is done with the model when a run is over.

    Raises FedloomError for whatever in the model is not as the experiment says.
    """
    algorithm = algorithms.build(experiment.algorithm, experiment.base)
    holdings = {name: read_facts(own, Holding) for name, own in record["clients"].items()}
    model = prepare_model(_data(_without_ranks(experiment), {}), algorithm)
    return _prepared(experiment, model, record["run"], holdings, [])


def _prepared(
    experiment: Experiment, model: Prepared, run: str, holdings: Mapping[str, Holding], said: list[str]
) -> RemotePrepared:
    values = {f.name: getattr(model, f.name) for f in fields(Prepared)} | vars(_data(experiment, holdings, model))
    prepared = RemotePrepared(**values, run=run, holdings=holdings, said=said)
    prepared.ranks  # noqa: B018 - a rank for no client, or a client without one, is refused now
    make_choice(prepared)  # layers that the model has not, too
    return prepared


def _online(experiment: Experiment, link: ServerLink) -> list[str]:
    """Who is online, once anyone is."""
    _check_online(experiment, link, None)
    return sorted(link.presence())


def _check_online(experiment: Experiment, link: ServerLink, names: Sequence[str] | None) -> None:
    """Wait a while for anyone to be online: one who is not may still come before the deadline."""
    settings = _settings(experiment)
    patience = settings.round_deadline * _PATIENCE
    until = time.monotonic() + patience
    while not (online := link.presence()) or (names is not None and not online.keys() & set(names)):
        if time.monotonic() > until:
            whom = "" if names is None else f"; the federation has {len(names)}: {', '.join(names[:5])}"
            what = f"no client is online, after {patience:.3g} seconds{whom}"
            raise RunError(what, where="engine.remote", fix="Start clients with `fedloom join`, then go on")
        time.sleep(min(_TICK, patience / 10))


def _open(
    experiment: Experiment, model: Prepared, link: ServerLink, run: str, names: Sequence[str]
) -> tuple[dict[str, Holding], list[str]]:
    """What those who take part hold, in the order of the names; and who does not, and why."""
    blob = link.put(f"{run}.experiment", _text(experiment).encode())
    facts = spell(Open(base=model.base, layout=model.binding.layout.digest))
    asks = {
        k: Ask(run=run, round=0, kind="open", client=name, facts=facts, blobs={"experiment": blob})
        for k, name in enumerate(names)
    }
    settings = _settings(experiment)
    gathering = Gathering(link, asks, settings.round_deadline)
    holdings: dict[str, Holding] = {}
    out: dict[str, str] = {}
    for k, name in enumerate(names):
        answer = gathering.wait_for(k)
        try:
            if answer is None or answer.status != "ok":
                reason = f"it did not answer within {settings.round_deadline:g} seconds"
                out[name] = reason if answer is None else clean(answer.reason)
            else:
                holdings[name] = read_facts(answer.facts, Holding)
        except FedloomError as error:
            out[name] = str(error)
    gathering.withdraw()
    if out and (experiment.federation.on_failure == "stop" or not holdings):
        each = " ".join(f"{name}: {reason}" for name, reason in out.items())
        fix = "mend it there"
        fix += ", or go on without them: federation.on_failure: drop" if holdings else ""
        raise RunError(f"{len(out)} of {len(names)} clients do not take part", why=each, fix=fix)
    return holdings, [f"{name} does not take part: {reason}" for name, reason in out.items()]


def _text(experiment: Experiment) -> str:
    """What clients are told: the experiment, but for what is the coordinator's own business."""
    engine = LocalEngine(threads=experiment.engine.threads, device="auto")
    changes: dict[str, Any] = {
        "engine": engine,
        "data": experiment.data.model_copy(update={"source": "own.jsonl"}),
        "federation": experiment.federation.model_copy(update={"clients_per_round": None, "early_stopping": None}),
        "tensorboard": False,
    }
    return dump(_without_ranks(experiment).model_copy(update=changes))


def _without_ranks(experiment: Experiment) -> Experiment:
    if getattr(experiment.adapter, "ranks", None) is None:
        return experiment
    return experiment.model_copy(update={"adapter": experiment.adapter.model_copy(update={"ranks": None})})


def _data(experiment: Experiment, holdings: Mapping[str, Holding], like: PreparedData | None = None) -> PreparedData:
    """The rows that these clients hold, as if they were here."""
    labels = list(experiment.data.labels.values())
    if like is None:
        tokenizer = load_tokenizer(experiment.model, experiment.base, labels)
        task = tasks.load(experiment.model.task, experiment.base)(tokenizer, experiment.data, labels)
    else:
        tokenizer, task = like.tokenizer, like.task
    rows = np.array([own.rows for own in holdings.values()], dtype=np.int64)
    validation = np.array([own.validation for own in holdings.values()], dtype=np.int64)
    trains = np.repeat(np.tile([True, False], len(rows)), np.stack([rows, validation], axis=1).ravel())
    names = list(holdings)
    return PreparedData(
        experiment, task, tokenizer, labels, StandIn.of(holdings), np.arange(0),
        _partition(names, rows, np.flatnonzero(trains)), _partition(names, validation, np.flatnonzero(~trains)),
    )  # fmt: skip


def _partition(names: list[str], sizes: Rows, indices: Rows) -> Partition:
    return Partition(names, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)]), indices)


def _lengths(tokens: int, rows: int, others: int) -> NDArray[np.int64]:
    """Lengths of `rows` rows whose sum is `tokens`; the others have none."""
    each, more = divmod(tokens, rows)
    return np.concatenate([np.full(more, each + 1), np.full(rows - more, each), np.zeros(others)]).astype(np.int64)


def _settings(experiment: Experiment) -> RemoteEngine:
    assert isinstance(experiment.engine, RemoteEngine)
    return experiment.engine
