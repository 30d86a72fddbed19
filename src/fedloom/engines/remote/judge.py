"""Clients judge the model, each on rows that nobody else sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedloom.aggregation.factors import residuals
from fedloom.config.schema import RemoteEngine as Settings
from fedloom.engines.remote.asking import Asking
from fedloom.engines.remote.gathering import Gathering, clean
from fedloom.engines.remote.link import Answer, Ask, ServerLink
from fedloom.engines.remote.messages import Evaluate, Judged, read_facts, spell
from fedloom.engines.remote.standin import RemotePrepared
from fedloom.errors import ClientError, FedloomError
from fedloom.evaluation.evaluator import Model

__all__ = ["RemoteJudge"]


class RemoteJudge:
    """Asks the clients that are online; one that is not, or does not answer in time, is left out."""

    def __init__(self, prepared: RemotePrepared, link: ServerLink, asking: Asking) -> None:
        assert isinstance(prepared.experiment.engine, Settings)
        self._prepared, self._link, self._asking = prepared, link, asking
        self._deadline = prepared.experiment.engine.round_deadline
        self._latest: tuple[int, list[dict[str, Any]]] = (-1, [])  # judging every client is not done twice

    def held_out(self, model: Model) -> dict[str, float]:
        """`eval_<metric>`: the mean over clients of what each measured on its own validation rows, weighted by their number.

        No rows are shared, so this is not what a local run measures on held-out rows; and the mean of a metric that is no mean over
        rows itself (a perplexity, an F1) is not that metric of all rows together. Each has its own vector with a personal method.
        """
        records = self.clients(model)
        rows = sum(record["rows"] for record in records)
        names = [key for key in records[0] if key.startswith("eval_")] if records else []
        return {name: sum(r["rows"] * r[name] for r in records) / rows for name in names}

    def unseen(self, model: Model) -> dict[str, float]:
        """Nothing: every client trains."""
        return {}

    def clients(self, model: Model) -> list[dict[str, Any]]:
        """A record a client: its metrics on its own validation rows, with its own vector where the method is personal.

        Raises ClientError where a client fails and the policy is to stop.
        """
        if self._latest[0] != model.round:
            self._latest = (model.round, self._judge(model))
        return self._latest[1]

    def _judge(self, model: Model) -> list[dict[str, Any]]:
        prepared = self._prepared
        prepared.binding.fold(residuals(model.server))
        online = self._link.presence()
        judging = [k for k, size in enumerate(prepared.validation.sizes) if size]
        asked = [k for k in judging if prepared.train.clients[k] in online]
        away = [prepared.train.clients[k] for k in judging if k not in asked]
        gathering = Gathering(self._link, self._asks(model, asked) if asked else {}, self._deadline)
        records = []
        for k in asked:
            name, answer = prepared.train.clients[k], gathering.wait_for(k)
            if answer is None:
                away.append(name)
                continue
            try:
                records.append(self._record(model, k, answer))
            except FedloomError as error:
                self._failed(model, name, error)
        gathering.withdraw()
        if away:
            self._asking.notes.append(f"not judged after round {model.round}, for they are away: {', '.join(away)}")
        return _alike(records)

    def _asks(self, model: Model, clients: Sequence[int]) -> dict[int, Ask]:
        prepared = self._prepared
        beside = prepared.algorithm.broadcast(model.w, model.server)
        blob, vector = self._asking.vector(model.w, beside, model.round + 1)
        return {
            k: Ask(
                run=prepared.run, round=model.round, kind="evaluate", client=prepared.train.clients[k],
                facts=spell(Evaluate(**self._asking.common(k, vector, model.round + 1))), blobs={"vector": blob},
            )
            for k in clients
        }  # fmt: skip

    def _record(self, model: Model, client: int, answer: Answer) -> dict[str, Any]:
        name = self._prepared.train.clients[client]
        if answer.status != "ok":
            raise ClientError(name, model.round, clean(answer.reason).rstrip("."))
        judged, rows = read_facts(answer.facts, Judged), int(self._prepared.validation.sizes[client])
        if judged.rows != rows:
            raise FedloomError("an answer was refused", why=f"it judged {judged.rows} rows, and holds {rows}")
        metrics = {f"eval_{key}": value for key, value in judged.metrics.items()}
        return {"round": model.round, "client": name, "evaluated": "own", "rows": rows} | metrics

    def _failed(self, model: Model, name: str, error: FedloomError) -> None:
        failure = error if isinstance(error, ClientError) else ClientError(name, model.round, str(error).rstrip("."))
        if self._prepared.experiment.federation.on_failure == "stop":
            raise failure from error
        self._asking.notes.append(f"not judged after round {model.round}: {failure}")


def _alike(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with only the metrics that all of them have."""
    common = set.intersection(*(set(record) for record in records)) if records else set()
    return [{key: value for key, value in record.items() if key in common} for record in records]
