"""One group's share of a round: start, train, upload, fold. Every engine runs exactly this."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.aggregation.mean import Partial
from fedloom.codec.wire import Update, decode, encode, encoded_size
from fedloom.errors import ClientError, FedloomError
from fedloom.local.prepare import Prepared
from fedloom.local.store import ClientStore
from fedloom.local.train import Member, Trainer

__all__ = ["Assignment", "ClientReport", "GroupResult", "run_group"]


@dataclass(frozen=True)
class Assignment:
    """What a group is asked to do: the round, the server's vector `[n]`, the learning-rate factor of the round."""

    round: int
    w: Tensor
    lr_factor: float


@dataclass(frozen=True)
class ClientReport:
    """What a client's round came to."""

    client: str
    status: str
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    train_loss: float | None = None
    weight: float = 0.0
    bytes_up: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """A group's partial aggregate, and a report a client."""

    partial: Partial
    reports: list[ClientReport]


def run_group(
    prepared: Prepared, store: ClientStore, trainer: Trainer, work: Assignment, clients: Sequence[int]
) -> GroupResult:
    """Train a group and fold its updates.

    When the group as a whole raises, its clients are run one by one, so that the failure gets its client's name.
    """
    try:
        return _run(prepared, store, trainer, work, clients)
    except FedloomError:
        raise
    except Exception as error:
        if len(clients) == 1:
            return _failed(prepared, work, clients[0], error)
    fold = prepared.algorithm.combine()
    partial = fold.empty(prepared.binding.layout.n)
    reports: list[ClientReport] = []
    for client in clients:
        alone = run_group(prepared, store, trainer, work, [client])
        partial, reports = fold.merge(partial, alone.partial), reports + alone.reports
    return GroupResult(partial, reports)


def _failed(prepared: Prepared, work: Assignment, client: int, error: Exception) -> GroupResult:
    name = prepared.train.clients[client]
    detail = "".join(traceback.format_exception(error))
    failure = ClientError(name, work.round, f"{type(error).__name__}: {error}", detail=detail)
    _apply_policy(prepared, failure)
    empty = prepared.algorithm.combine().empty(prepared.binding.layout.n)
    return GroupResult(empty, [ClientReport(name, "dropped", reason=f"{failure}\n{detail}")])


def _run(
    prepared: Prepared, store: ClientStore, trainer: Trainer, work: Assignment, clients: Sequence[int]
) -> GroupResult:
    algorithm, names = prepared.algorithm, [prepared.train.clients[k] for k in clients]
    fresh = algorithm.client_state(prepared.initial)
    keep = prepared.experiment.local.optimizer_state == "keep"
    states = [store.load(name, work.round) if fresh or keep else None for name in names]
    state = {key: torch.stack([(s or fresh)[key] for s in states]) for key in fresh}
    rows = algorithm.broadcast(work.w, state, len(clients))
    members = [trainer.member(prepared.train, k, work.round, prepared.step_scale) for k in clients]
    memory = _optimizer_memory(prepared, trainer, states, rows)
    trained, memory = trainer.run(members, rows, algorithm, state, memory, round=work.round, lr_factor=work.lr_factor)
    trained = trained.cpu()

    fold = algorithm.combine()
    partial, reports = fold.empty(prepared.binding.layout.n), []
    room = torch.empty(1, prepared.binding.layout.n)  # one client's update at a time: it stays in the processor's cache
    for k, (member, own, anchor) in enumerate(zip(members, trained.split(1), rows.split(1), strict=True)):
        if member.failure:
            _apply_policy(prepared, member.failure)
            reports.append(ClientReport(member.client, "dropped", reason=str(member.failure)))
            continue
        delta = torch.sub(own, anchor, out=room)
        update, kept = algorithm.upload(delta, own, {name: values[k : k + 1] for name, values in state.items()})
        kept = {name: values[0] for name, values in kept.items()}
        if keep:
            kept |= {f"optimizer.{name}": values[k] for name, values in memory.items()}
        if kept:
            store.save(member.client, work.round, kept)
        weight = _weight(prepared, clients[k])
        report, received = _send(prepared, work, member, weight, update)
        if received is not None:
            partial = fold.add(partial, received, [weight])
        reports.append(report)
    return GroupResult(partial, reports)


def _optimizer_memory(
    prepared: Prepared, trainer: Trainer, states: Sequence[dict[str, Tensor] | None], rows: Tensor
) -> dict[str, Tensor] | None:
    """The optimizer's state of these clients, where they keep it; a client's first round starts afresh."""
    if prepared.experiment.local.optimizer_state == "reset":
        return None
    fresh = trainer.fresh_memory(rows[:1])
    own = [
        {k.removeprefix("optimizer."): v for k, v in (s or {}).items() if k.startswith("optimizer.")} for s in states
    ]
    return {key: torch.stack([o.get(key, first[0]) for o in own]) for key, first in fresh.items()}


def _weight(prepared: Prepared, client: int) -> float:
    rows = prepared.train.rows(client)
    weighting = prepared.experiment.federation.weighting
    if weighting == "tokens":
        return float(prepared.table.lengths[rows].sum())
    return float(len(rows)) if weighting == "samples" else 1.0


def _send(
    prepared: Prepared, work: Assignment, member: Member, weight: float, row: Tensor | None
) -> tuple[ClientReport, Tensor | None]:
    """A client's update: counted where it is encoded; with `engine.wire`, really encoded and decoded."""
    facts = {"samples": member.samples, "tokens": member.tokens, "steps": len(member.steps), "train_loss": member.loss}
    if row is None or not prepared.algorithm.federated:
        return ClientReport(member.client, "ok", **facts, weight=weight), row  # type: ignore[arg-type]
    layout = prepared.binding.layout
    header = Update(layout=layout.digest, round=work.round, client=member.client, weight=weight, **facts)  # type: ignore[arg-type]
    if prepared.experiment.engine.wire:
        message = encode(header, {"delta": row})
        _, tensors = decode(message, Update, {"delta": (torch.float32, (1, layout.n))})
        size, row = len(message), tensors["delta"]
    else:
        size = encoded_size(header, {"delta": row})
    return ClientReport(member.client, "ok", **facts, weight=weight, bytes_up=size), row  # type: ignore[arg-type]


def _apply_policy(prepared: Prepared, failure: ClientError) -> None:
    if prepared.experiment.federation.on_failure == "stop":
        raise failure
