"""Groups whose clients are elsewhere: they are asked, their answers waited for, read one at a time, and folded in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedloom.codec.wire import Buffer, Seeds, Update, read_header, size_limit
from fedloom.config.gradient import Directional
from fedloom.config.schema import RemoteEngine as Settings
from fedloom.engines.group import Assignment, ClientReport, ClientUpdate, GroupResult, fold_updates, sent_entries
from fedloom.engines.messages import declared, read_update
from fedloom.engines.remote.asking import Asking
from fedloom.engines.remote.gathering import Gathering, clean
from fedloom.engines.remote.judge import RemoteJudge
from fedloom.engines.remote.link import Answer, Ask, ServerLink, Unreachable
from fedloom.engines.remote.messages import Scored, Spent, Train, oldest, read_facts, spell
from fedloom.engines.remote.standin import RemotePrepared
from fedloom.engines.seeds import read_seeds, sends_seeds
from fedloom.engines.sizing import Sizing, size_groups
from fedloom.errors import ClientError, FedloomError, RunError
from fedloom.evaluation.evaluator import Judge
from fedloom.local.batches import steps_of
from fedloom.local.opening import open_group, rank_masks
from fedloom.local.scores import SCORES
from fedloom.local.seeds import most_directions, rebuild
from fedloom.local.store import ClientStore
from fedloom.local.train import Trainer, make_trainer
from fedloom.local.weighting import client_weight

__all__ = ["RemoteEngine"]


class RemoteEngine:
    """A round over a link. Each client trains alone, so sums have the bits of a local run with `local.grouping: in_place`.

    In memory is one update at a time, whatever the number of clients, beside what the algorithm's fold keeps.
    """

    def __init__(self, prepared: RemotePrepared, store: ClientStore, link: ServerLink) -> None:
        assert isinstance(prepared.experiment.engine, Settings)
        self._prepared, self._link, self._settings = prepared, link, prepared.experiment.engine
        self._store, self._asking = store, Asking(prepared, store, link)
        self.sizing: Sizing = _sizing(prepared)
        self.judge: Judge = RemoteJudge(prepared, link, self._asking)
        self._trainer: Trainer | None = make_trainer(prepared, grouped=False) if sends_seeds(prepared) else None

    def notes(self) -> list[str]:
        """What there is to know of how groups are trained, each once."""
        notes, self._asking.notes = self._asking.notes, []
        return notes

    def close(self, finished: bool = False) -> None:
        """Nothing was started here; when the run is finished, every client is told: one that is away learns it when it is back."""
        if not finished:
            return
        prepared = self._prepared
        rounds = prepared.experiment.federation.rounds
        self._link.ask(
            [Ask(run=prepared.run, round=rounds, kind="close", client=name) for name in prepared.train.clients]
        )

    def run(self, work: Assignment, groups: Sequence[Sequence[int]]) -> Iterator[GroupResult]:
        """The results of the groups, in the order given; all clients are asked at once, and have one deadline.

        Raises ClientError where a client fails and the policy is to stop, RunError where too few updates come.
        """
        clients = [k for group in groups for k in group]
        asks = self._asks(work, clients)
        first = self._settings.first
        gathering = Gathering(
            self._link, asks, self._settings.round_deadline, None if first is None else min(first, len(clients))
        )
        checkpoints = self._prepared.experiment.checkpoints  # what is over is let go while the clients work
        self._link.forget(self._prepared.run, min(oldest(checkpoints, work.arrives) + 1, work.round))
        joined: set[int] = set()
        for group in groups:
            yield fold_updates(self._prepared, work, self._updates(work, gathering, group, joined))
        self._check_enough(gathering, work, len(joined), self._settings.quorum or 0)
        gathering.withdraw()
        for k in clients:
            self._asking.settle(k, work.arrives, k in joined)

    def _asks(self, work: Assignment, clients: Sequence[int]) -> dict[int, Ask]:
        blob, vector = self._asking.vector(work.w, work.server, work.round)
        blobs = {"vector": blob}
        if work.layers is not None:
            blobs["layers"] = self._asking.mask(work.layers, work.round)
        scored = None if work.scored is None else Scored(score=work.scored[0], layers=list(work.scored[1]))
        asks = {}
        for k in clients:
            common = self._asking.common(k, vector, work.arrives)
            facts = Train(
                **common, cohort=len(clients), lr_factor=work.lr_factor, staleness=work.staleness,
                batches=work.batches, scored=scored,
            )  # fmt: skip
            name = self._prepared.train.clients[k]
            asks[k] = Ask(
                run=self._prepared.run, round=work.round, kind="train", client=name, facts=spell(facts), blobs=blobs
            )
        return asks

    def _updates(
        self, work: Assignment, gathering: Gathering, group: Sequence[int], joined: set[int]
    ) -> Iterator[ClientUpdate]:
        """A group's updates in the order in which it would be trained: those with most steps first."""
        steps = {k: self._steps(k) for k in group}
        for client in sorted(group, key=lambda k: -steps[k]):
            name = self._prepared.train.clients[client]
            answer = gathering.wait_for(client)
            if answer is None:
                if gathering.timed_out:
                    self._check_answers(gathering, work)
                yield ClientUpdate(ClientReport(name, "dropped", reason=gathering.reason))
                continue
            try:
                if answer.status != "ok":
                    raise ClientError(name, work.round, _own(name, work.round, clean(answer.reason)))
                update = self._read(work, client, answer)
            except Unreachable:
                raise  # the client's answer is where it was; this run goes on with the next process
            except FedloomError as error:
                yield self._failed(name, work, error)
                continue
            joined.add(client)
            yield update
            del update  # before the next is fetched

    def _failed(self, name: str, work: Assignment, error: FedloomError) -> ClientUpdate:
        """A client whose answer is a failure, or was refused."""
        failure = error if isinstance(error, ClientError) else ClientError(name, work.round, str(error).rstrip("."))
        if self._prepared.experiment.federation.on_failure == "stop":
            raise failure from error
        return ClientUpdate(ClientReport(name, "dropped", reason=str(failure)))

    def _check_answers(self, gathering: Gathering, work: Assignment) -> None:
        """Raise where time was up and too few had answered: `quorum`, or `first`, or all that have not failed."""
        came = sum(answer.status == "ok" for answer in gathering.answers.values())
        need = self._settings.quorum or self._settings.first or came + len(gathering.late)
        self._check_enough(gathering, work, came, need)

    def _check_enough(self, gathering: Gathering, work: Assignment, came: int, need: int) -> None:
        need = min(need, len(gathering.answers) + len(gathering.late))
        if came >= need:
            return
        names = [self._prepared.train.clients[k] for k in gathering.late]
        heard = (
            f"; nothing was heard of {', '.join(names[:5])}{' and others' if len(names) > 5 else ''}" if names else ""
        )
        raise RunError(
            f"round {work.arrives} has {came} of the {need} updates that it needs{heard}",
            where="engine.quorum",
            why=f"{self._settings.round_deadline:g} seconds were over" if gathering.timed_out else "the others failed",
            fix="go on with `fedloom resume` when clients are back, or set a lower engine.quorum",
        )

    def _read(self, work: Assignment, client: int, answer: Answer) -> ClientUpdate:
        """A client's update, checked against all that is known of it before and after it is fetched.

        Raises FedloomError when it is refused.
        """
        prepared = self._prepared
        name, spent = prepared.train.clients[client], read_facts(answer.facts, Spent)
        sent = sent_entries(prepared, work, [client])[0]
        if self._trainer is not None:
            content = self._link.fetch(answer, size_limit(self._declared_seeds(work, client)))
            header, received, start = self._replayed(work, client, content)
        else:
            content = self._link.fetch(answer, size_limit(declared(prepared, sent, work.scored)))
            header, received = read_update(prepared, content, sent, work.scored)
            start = work.w if prepared.ranks is None else work.w * rank_masks(prepared, [client])[0]
        said = (header.client, header.round, header.weight, header.steps)
        known = (name, work.round, client_weight(prepared, client), self._steps(client))
        for what, found, right in zip(("client", "round", "weight", "number of steps"), said, known, strict=True):
            if found != right:
                raise FedloomError("a message was refused", why=f"its {what} is {found!r}, and should be {right!r}")
        report = ClientReport(
            name, "ok", samples=header.samples, tokens=header.tokens, steps=header.steps,
            train_loss=header.train_loss, weight=header.weight,
            bytes_up=len(content) if prepared.algorithm.federated else 0,
            forward_equivalents=spent.forward_equivalents, directions=spent.directions,
        )  # fmt: skip
        return ClientUpdate(report, received, start, sent)

    def _replayed(
        self, work: Assignment, client: int, content: Buffer
    ) -> tuple[Update | Seeds, Mapping[str, Tensor], Tensor]:
        """The header of a message of derivatives, and what the client's steps come to: they are taken again."""
        prepared, trainer = self._prepared, self._trainer
        assert trainer is not None
        header, _ = read_header(content, Seeds, prepared.binding.layout.digest)
        beside = {} if work.scored is None else {SCORES: torch.zeros(len(work.scored[1]), 1)}
        message = read_seeds(prepared, content, beside)
        group, _ = open_group(
            prepared, self._store, trainer, [client], work.w, work.server,
            round=work.round, before=work.round, lr_factor=work.lr_factor, batches=work.batches, layers=work.layers,
        )  # fmt: skip
        trained = rebuild(group, prepared.algorithm, [message.pop("derivatives")])
        uploads, _ = prepared.algorithm.upload(trained - group.anchor, trained, group)
        received = {name: values[0].cpu() for name, values in uploads.items()} | message
        return header, received, group.anchor[0].cpu()

    def _declared_seeds(self, work: Assignment, client: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """The most that a message of derivatives holds."""
        gradient = self._prepared.experiment.local.gradient
        assert isinstance(gradient, Directional)
        shapes: dict[str, tuple[int, ...]] = {"derivatives": (self._steps(client) * most_directions(gradient),)}
        if work.scored is not None:
            shapes[SCORES] = (len(work.scored[1]), 1)
        return {name: (torch.float32, shape) for name, shape in shapes.items()}

    def _steps(self, client: int) -> int:
        prepared = self._prepared
        return steps_of(len(prepared.train.rows(client)), prepared.experiment.local, prepared.step_scale)


def _sizing(prepared: RemotePrepared) -> Sizing:
    """Groups as a local run has them that trains its clients one by one: what is summed together, not what is trained together."""
    local = prepared.experiment.local.model_copy(update={"grouping": "in_place"})
    sizing = size_groups(replace(prepared, experiment=prepared.experiment.model_copy(update={"local": local})))
    return replace(sizing, reason="every client trains alone, where it is")


def _own(name: str, round: int, reason: str) -> str:
    """What a client says of its failure, without the place that is put before it again."""
    return reason.removeprefix(f"client {name!r}, round {round}: ").rstrip(".")
