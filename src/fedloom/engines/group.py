"""One group's share of a round: start, train, upload, fold. Every engine runs exactly this."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedloom.aggregation.mean import Partial
from fedloom.codec.wire import Update, encode, encoded_size
from fedloom.config.layers import Score
from fedloom.engines.messages import pack, read_update, unpack
from fedloom.engines.seeds import sends_seeds, through_seeds
from fedloom.engines.watch import factors_to_keep
from fedloom.errors import ClientError, FedloomError
from fedloom.local.group import Member
from fedloom.local.opening import kept_state, open_group, rank_masks, trained_entries
from fedloom.local.prepare import Prepared
from fedloom.local.scores import SCORES, client_scores
from fedloom.local.seeds import derivatives_of
from fedloom.local.store import ClientStore
from fedloom.local.train import Trainer
from fedloom.local.weighting import client_weight

__all__ = [
    "Assignment",
    "ClientReport",
    "ClientUpdate",
    "GroupResult",
    "fold_updates",
    "run_group",
    "sent_entries",
    "train_group",
]


@dataclass(frozen=True)
class Assignment:
    """What a group is asked to do: the round, the server's vector `[n]`, what goes beside it, the round's learning-rate factor."""

    round: int
    w: Tensor
    lr_factor: float
    server: Mapping[str, Tensor] = field(default_factory=dict)
    discount: float = 1.0
    """By how much the server shrinks these clients' updates: for their staleness."""
    staleness: int = 0
    """The rounds that have passed when these updates arrive: `round` is the one in which the clients were asked."""
    batches: int | None = None
    """The round whose batches these are, where the same are asked for again; else `round`'s own."""

    layers: Tensor | None = None
    """The entries, `[n]`, of the layers that train; None for all."""
    divided: bool = False
    """Whether other clients of the round train other layers, so that an entry's mean is over those who sent it."""
    stretch: Mapping[int, int] = field(default_factory=dict)
    """The clients that take more steps than usual, and how many times as many."""
    scored: tuple[Score, Sequence[int]] | None = None
    """The score, and the numbers of the layers, that the clients send one number each of; None for no scores."""

    @property
    def arrives(self) -> int:
        """The round in which the updates arrive, and as of which clients' states are kept."""
        return self.round + self.staleness


@dataclass(frozen=True)
class ClientReport:
    """What a client's round came to."""

    client: str
    status: str
    samples: int = 0
    tokens: int = 0
    steps: int = 0
    train_loss: float | None = None
    loss_square: float | None = None
    """Mean square of its samples' losses, where the selector asks for that."""
    weight: float = 0.0
    bytes_up: int = 0
    forward_equivalents: int = 0
    """Forward passes over one example, or what costs as much: a step by backpropagation is 3 an example."""
    directions: int = 0
    reason: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """A group's partial aggregate, and a report a client."""

    partial: Partial
    reports: list[ClientReport]
    factors: list[tuple[float, Tensor]] = field(default_factory=list)
    """Where the aggregation is watched, every client's weight and LoRA factors."""
    peak_memory: int = 0
    """Bytes that the process that trained it has held at most, so far."""


@dataclass(frozen=True)
class ClientUpdate:
    """What a client's round came to, as the server has it."""

    report: ClientReport
    received: Mapping[str, Tensor] = field(default_factory=dict)
    """The tensors of the update, whole vectors again where only entries of them travelled."""
    start: Tensor | None = None
    """`[n]`: where the client started; None where it was dropped."""
    sent: Tensor | None = None
    """The entries, `[n]`, that travelled; None for all."""
    derivatives: Tensor | None = None
    """Where the client sends derivatives alone, those; `received` was made again from them."""


def run_group(
    prepared: Prepared, store: ClientStore, trainer: Trainer, work: Assignment, clients: Sequence[int]
) -> GroupResult:
    """Train a group and fold its updates.

    When the group as a whole raises, its clients are run one by one, so that the failure gets its client's name.
    """
    try:
        return fold_updates(prepared, work, train_group(prepared, store, trainer, work, clients))
    except FedloomError:
        raise
    except Exception as error:
        if len(clients) == 1:
            return fold_updates(prepared, work, [_failed(prepared, work, clients[0], error)])
    fold = prepared.algorithm.combine(prepared.binding.layout)
    partial = fold.empty()
    reports: list[ClientReport] = []
    factors: list[tuple[float, Tensor]] = []
    for client in clients:
        alone = run_group(prepared, store, trainer, work, [client])
        partial, reports = fold.merge(partial, alone.partial), reports + alone.reports
        factors += alone.factors
    return GroupResult(partial, reports, factors)


def fold_updates(prepared: Prepared, work: Assignment, updates: Iterable[ClientUpdate]) -> GroupResult:
    """The server's half: a group's updates, in its order, as a partial aggregate."""
    algorithm = prepared.algorithm
    fold, watch = algorithm.combine(prepared.binding.layout), factors_to_keep(prepared)
    partial, reports, factors = fold.empty(), [], []
    for update in updates:
        reports.append(update.report)
        if update.start is None:
            continue
        received, weight, start = update.received, update.report.weight, update.start
        partial = fold.add(partial, received, weight, start, work.discount, update.sent if work.divided else None)
        if watch is not None and "delta" in received:
            share = 1.0 if "delta" in algorithm.unweighted else weight
            factors.append((share, start[watch] + received["delta"][watch]))
    return GroupResult(partial, reports, factors)


def _failed(prepared: Prepared, work: Assignment, client: int, error: Exception) -> ClientUpdate:
    name = prepared.train.clients[client]
    detail = "".join(traceback.format_exception(error))
    failure = ClientError(name, work.round, f"{type(error).__name__}: {error}", detail=detail)
    _apply_policy(prepared, failure)
    return ClientUpdate(ClientReport(name, "dropped", reason=f"{failure}\n{detail}"))


def train_group(
    prepared: Prepared, store: ClientStore, trainer: Trainer, work: Assignment, clients: Sequence[int]
) -> Iterator[ClientUpdate]:
    """The clients' half: train a group, keep what its clients keep, and hand over one update after the other."""
    algorithm = prepared.algorithm
    group, order = open_group(
        prepared, store, trainer, clients, work.w, work.server,
        round=work.round, before=work.round, lr_factor=work.lr_factor, batches=work.batches,
        layers=work.layers, stretch=work.stretch,
    )  # fmt: skip
    scores = {} if work.scored is None else {SCORES: client_scores(trainer, group, *work.scored)}
    trained = algorithm.train(group, algorithm.gradient)
    sizes: Sequence[int] | None = None
    if sends_seeds(prepared):
        _check_finite(group.members, scores, work.round)
        sizes, trained = through_seeds(prepared, group, order, scores)
    delta = torch.sub(trained, group.anchor, out=trainer.room("gradients", trained))
    uploads, kept = algorithm.upload(delta, trained, group)
    uploads = {name: values.cpu() for name, values in (uploads | scores).items()}
    _check_finite(group.members, uploads, work.round)
    sent = sent_entries(prepared, work, order)
    starts = group.anchor.cpu()
    for k, (client, member) in enumerate(zip(order, group.members, strict=True)):
        if member.failure:
            _apply_policy(prepared, member.failure)
            yield ClientUpdate(ClientReport(member.client, "dropped", reason=str(member.failure)))
            continue
        state = kept_state(prepared, group, trained, kept, k)
        if state:
            store.save(member.client, work.arrives, state)
        weight = client_weight(prepared, client)
        update = {name: values[k] for name, values in uploads.items()}
        if sizes is None:
            report, received = _send(prepared, work, member, weight, update, sent[k])
        else:
            report, received = _report(member, weight, sizes[k]), update
        yield ClientUpdate(report, received, starts[k], sent[k], None if sizes is None else derivatives_of(member))


def _check_finite(members: Sequence[Member], uploads: Mapping[str, Tensor], round: int) -> None:
    """What goes beside the update, of a client whose training went well, can still be NaN or infinite."""
    for name, values in uploads.items():
        for member, row in zip(members, values if name != "delta" else (), strict=False):
            if member.failure is None and not torch.isfinite(row).all():
                what = f"its upload {name!r} is not finite"
                member.failure = ClientError(member.client, round, what, fix="lower `local.lr`, or set `local.clip`")


def sent_entries(prepared: Prepared, work: Assignment, clients: Sequence[int]) -> Sequence[Tensor | None]:
    """For each client the entries, `[n]`, of its vector that travel back in a round; None for all."""
    sent = trained_entries(prepared, work.round, work.layers)
    private = prepared.algorithm.private(prepared.binding.layout)
    if private is not None:
        sent = ~private if sent is None else sent & ~private
    if prepared.ranks is None:
        return [sent] * len(clients)
    own = rank_masks(prepared, clients)
    return list(own if sent is None else own & sent)


def _send(
    prepared: Prepared, work: Assignment, member: Member, weight: float, update: dict[str, Tensor], sent: Tensor | None
) -> tuple[ClientReport, Mapping[str, Tensor]]:
    """A client's update: counted where it is encoded; with `engine.wire`, really encoded and decoded."""
    if not update or not prepared.algorithm.federated:
        return _report(member, weight, 0), update
    layout = prepared.binding.layout
    header = Update(layout=layout.digest, round=work.round, client=member.client, weight=weight, **member.facts)
    message = pack(update, sent)
    if not prepared.experiment.engine.wire:
        vectors = [name for name, value in update.items() if sent is not None and value.shape == sent.shape]
        return _report(member, weight, encoded_size(header, message)), unpack(message, sent, vectors)
    content = encode(header, message)
    received = read_update(prepared, content, sent, work.scored)[1]
    return _report(member, weight, len(content)), received


def _report(member: Member, weight: float, size: int) -> ClientReport:
    """What became of a client whose update, of so many bytes, came in."""
    return ClientReport(
        member.client, "ok", **member.facts, weight=weight, bytes_up=size,
        forward_equivalents=member.forwards, directions=member.directions,
        loss_square=None if member.squares is None else member.squares / max(member.samples, 1),
    )  # fmt: skip


def _apply_policy(prepared: Prepared, failure: ClientError) -> None:
    if prepared.experiment.federation.on_failure == "stop":
        raise failure
