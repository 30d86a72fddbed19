"""A client that stays: it holds its rows and the base model, and answers what it is asked.

What it computes is a function of the ask, its rows and the states on its own disk, which are versioned by round. So it may die at
any instant: an ask that is told again is answered from what was kept, or computed anew, with the same bytes.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from fedloom.algorithms import build
from fedloom.codec.wire import Buffer, Header, Seeds, Update, encode
from fedloom.config.site import Site
from fedloom.engines.group import Assignment, ClientUpdate, train_group
from fedloom.engines.messages import pack
from fedloom.engines.remote.consent import (
    Refused,
    check_base,
    check_code,
    check_cohort,
    check_experiment,
    check_run,
    check_steps,
)
from fedloom.engines.remote.link import Answer, Ask, Blob, ClientLink, Unreachable
from fedloom.engines.remote.messages import (
    Evaluate,
    Holding,
    Judged,
    Open,
    Spent,
    Train,
    Vector,
    oldest,
    read_facts,
    read_vector,
    spell,
    unpack_mask,
)
from fedloom.engines.remote.own import Own, load_experiment, prepare_own
from fedloom.errors import FedloomError, RunError
from fedloom.evaluation.judge import measure
from fedloom.files import write_atomic
from fedloom.local.batches import steps_of
from fedloom.local.opening import open_group
from fedloom.local.scores import SCORES
from fedloom.local.store import ClientStore
from fedloom.local.train import Trainer, make_trainer

__all__ = ["LOG", "Resident"]

LOG = "sent.jsonl"
"""What has left this client, a line an answer."""
_TICK = 1.0
_MOST_TEXT = 1 << 18
_MOST_VECTOR = 1 << 36


@dataclass
class _Opened:
    """A run as this client has it."""

    own: Own
    store: ClientStore
    trainer: Trainer
    folder: Path


class Resident:
    """Answers one ask after the other."""

    def __init__(
        self,
        name: str,
        site: Site,
        link: ClientLink,
        folder: Path,
        *,
        base: Path,
        told: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> None:
        """site: the owner's rows and word; base: the folder that its paths start from; folder: where this client keeps its own.

        told: called with every line of `LOG` as it is written.
        """
        self.name, self._site, self._link, self._base, self._told = name, site, link, base, told
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._runs: dict[str, _Opened] = {}
        self._latest: tuple[str, Buffer] = ("", b"")
        self._received = 0

    def serve(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Answer asks until `stop` says so; it is asked about once a second, between answers."""
        while not stop():
            ask = self._link.next(_TICK)
            if ask is not None:
                self.handle(ask)

    def handle(self, ask: Ask) -> None:
        """Do what is asked, and answer; a failure is an answer too. One that was withdrawn gets none.

        Raises Unreachable when the broker is away for too long.
        """
        if self._link.cancelled(ask):
            return
        self._received = 0
        line: dict[str, Any] = {"run": ask.run, "round": ask.round, "kind": ask.kind}
        content: bytes | None = None
        try:
            check_run(ask.run)
            if ask.client != self.name:
                raise Refused(f"this is {self.name!r}, and {ask.client!r} is asked")
            facts, content, more = self._do(ask)
            answer = self._answer(ask, "ok", facts=facts)
            line |= more
        except _Withdrawn:
            return
        except Unreachable:
            raise  # no failure of what was asked, which will be told again: to the next process, if this one ends
        except FedloomError as error:
            refused = ask.kind == "open" or isinstance(error, Refused)
            answer = self._answer(ask, "refused" if refused else "failed", str(error))
        except Exception as error:  # whatever fails here is this client's failure, told with its place
            answer = self._answer(ask, "failed", _told(error))
        self._link.answer(answer, content)
        line |= {"status": answer.status, "reason": answer.reason, "bytes_received": self._received}
        self._write(line | {"bytes_sent": len(content or b""), "facts": answer.facts})

    def _do(self, ask: Ask) -> tuple[dict[str, JsonValue], bytes | None, dict[str, Any]]:
        """The facts and the content of the answer, and what the owner is told of it."""
        match ask.kind:
            case "open":
                return spell(self._open(ask)), None, {}
            case "train":
                return self._train(ask, self._opened(ask.run))
            case "evaluate":
                return spell(self._judge(ask, self._opened(ask.run))), None, {}
        self._close(ask.run)
        return {}, None, {}

    def _open(self, ask: Ask) -> Holding:
        """Make an experiment ready, if its owner agrees to it."""
        facts = read_facts(ask.facts, Open)
        check_base(facts.base, self._site.accept)
        text = bytes(self._get(ask.blobs.get("experiment"), _MOST_TEXT)).decode("utf-8", errors="replace")
        check_code(text, self._site.accept)
        folder = self._folder / "runs" / ask.run
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "experiment.yaml", text)
        opened = self._load(ask.run, folder)
        prepared = opened.own.prepared
        if prepared.base != facts.base:
            why = f"this client's has the fingerprint {prepared.base}, and the coordinator's {facts.base}"
            raise Refused("the base model is another one", where="model.path", why=why, fix="Install the same here")
        if prepared.binding.layout.digest != facts.layout:
            raise Refused(
                "other parameters would be learnt here", where="adapter", fix="Install the same versions here"
            )
        digest = {"data": prepared.table.digest}
        known = folder / "opened.json"
        if known.exists() and json.loads(known.read_text()) != digest:
            raise Refused("the rows are not what they were when this run began", where=self._site.data.source)
        write_atomic(known, json.dumps(digest))
        return opened.own.holding

    def _opened(self, run: str) -> _Opened:
        """A run as it was opened, by this process or an earlier one."""
        folder = self._folder / "runs" / run
        if run not in self._runs and not (folder / "opened.json").exists():
            raise RunError(f"this client has not opened the run {run!r}, or has lost it", where=str(folder))
        return self._runs.get(run) or self._load(run, folder)

    def _load(self, run: str, folder: Path) -> _Opened:
        """Load the experiment that lies in a folder; the model stays, where the last run had the same."""
        text = (folder / "experiment.yaml").read_text(encoding="utf-8")
        check_code(text, self._site.accept)  # what was agreed to may have been taken back
        experiment = load_experiment(folder / "experiment.yaml", self._site.data, self._base)
        check_experiment(experiment, self._site.accept)
        like = next((opened.own for opened in self._runs.values()), None)
        self._runs.clear()  # one model in memory, however many runs there have been
        own = prepare_own(experiment, self.name, build(experiment.algorithm, self._base), self._site.data, like)
        check_base(own.prepared.base, self._site.accept)
        check_steps(steps_of(own.holding.rows, experiment.local), self._site.accept)
        opened = _Opened(own, ClientStore(folder / "clients"), make_trainer(own.prepared, grouped=False), folder)
        self._runs[run] = opened
        return opened

    def _train(self, ask: Ask, opened: _Opened) -> tuple[dict[str, JsonValue], bytes | None, dict[str, Any]]:
        if (kept := _kept(opened.folder, ask)) is not None:
            return kept
        facts = read_facts(ask.facts, Train)
        check_cohort(facts.cohort, self._site.accept)
        self._forget(opened, facts.void)
        w, beside = self._vector(ask, opened, facts.vector, ask.round)
        prepared = opened.own.among(facts.total, facts.rank)
        layers = ask.blobs.get("layers")
        n = prepared.binding.layout.n
        work = Assignment(
            ask.round, w, facts.lr_factor, beside, staleness=facts.staleness, batches=facts.batches,
            layers=None if layers is None else unpack_mask(self._get(layers, n), n),
            scored=None if facts.scored is None else (facts.scored.score, facts.scored.layers),
        )  # fmt: skip
        opened.store.keep_from = oldest(prepared.experiment.checkpoints, work.arrives)
        (update,) = train_group(prepared, opened.store, opened.trainer, work, [0])
        opened.trainer.notes.clear()
        if update.report.status != "ok":
            raise _Failed(update.report.reason)
        if self._link.cancelled(ask):
            opened.store.discard(self.name, work.arrives)
            raise _Withdrawn
        header, tensors = _message(opened.own, work, update)
        content = encode(header, tensors)
        report = update.report
        spent = spell(Spent(forward_equivalents=report.forward_equivalents, directions=report.directions))
        more = {"samples": report.samples, "loss": report.train_loss, "tensors": _described(tensors)}
        _keep(opened.folder, ask, work.arrives, spent, content, more)
        return spent, content, more

    def _judge(self, ask: Ask, opened: _Opened) -> Judged:
        """Judge the vector, or this client's own where the method is personal, on its validation rows."""
        facts = read_facts(ask.facts, Evaluate)
        self._forget(opened, facts.void)
        w, beside = self._vector(ask, opened, facts.vector, ask.round + 1)
        prepared = opened.own.among(facts.total, facts.rank)
        if prepared.algorithm.personal and ask.round > 0:
            group, _ = open_group(
                prepared, opened.store, opened.trainer, [0], w, beside, round=ask.round, before=ask.round + 1
            )
            w = prepared.algorithm.judged(group)[0].cpu()
            if failure := group.members[0].failure:
                raise failure
        rows = prepared.validation.rows(0)
        batch = prepared.experiment.evaluation.batch_size
        measured = measure(prepared.binding, prepared.task, prepared.table, rows, w, batch)
        return Judged(rows=len(rows), metrics=prepared.task.metrics(measured))

    def _forget(self, opened: _Opened, void: Sequence[int]) -> None:
        """Forget rounds whose update did not join: what was kept after them, and the answer."""
        for round in void:
            opened.store.discard(self.name, round)
        kept = opened.folder / "answer.json"
        if void and kept.exists() and json.loads(kept.read_text())["round"] in void:
            kept.unlink()

    def _close(self, run: str) -> None:
        """Forget a run; what this client learnt for itself stays in its folder."""
        self._runs.pop(run, None)
        folder = self._folder / "runs" / run
        for name in ("answer.json", "answer.bin"):
            (folder / name).unlink(missing_ok=True)

    def _vector(self, ask: Ask, opened: _Opened, facts: Vector, round: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The server's vector and what goes beside it; what goes into the base weights is there when this returns."""
        content = self._get(ask.blobs.get("vector"), _MOST_VECTOR)
        w, beside, folded = read_vector(opened.own.prepared, content, facts, round)
        opened.own.prepared.binding.fold(folded)
        return w, beside

    def _get(self, blob: Blob | None, limit: int) -> Buffer:
        """A blob, from memory where it is the last that was fetched: what is judged is trained on next."""
        if blob is None or blob.size > limit:
            raise Refused("what is asked is incomplete" if blob is None else f"{blob.key} has {blob.size} bytes")
        if self._latest[0] != blob.sha256:
            self._latest = blob.sha256, self._link.get(blob)
            self._received += blob.size
        return self._latest[1]

    def _answer(
        self, ask: Ask, status: Any, reason: str | None = None, facts: Mapping[str, JsonValue] | None = None
    ) -> Answer:
        return Answer(
            id=ask.id, ask=ask.digest, client=self.name, status=status, reason=reason, facts=dict(facts or {})
        )

    def _write(self, line: dict[str, Any]) -> None:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | line
        with (self._folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self._told(line)


class _Withdrawn(Exception):
    """The coordinator went on without this client while it was training."""


class _Failed(FedloomError):
    """Training failed; the reason is a whole paragraph already."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason or "training failed")


def _message(own: Own, work: Assignment, update: ClientUpdate) -> tuple[Header, dict[str, Tensor]]:
    """What leaves: the update's entries that travel; or the derivatives alone, from which it can be made again."""
    report = update.report
    said: dict[str, Any] = {
        "layout": own.prepared.binding.layout.digest, "round": work.round, "client": report.client,
        "weight": report.weight, "samples": report.samples, "tokens": report.tokens, "steps": report.steps,
        "train_loss": report.train_loss,
    }  # fmt: skip
    if update.derivatives is None:
        return Update(**said), pack(update.received, update.sent)
    beside = {name: value for name, value in update.received.items() if name == SCORES}
    return Seeds(**said, directions=len(update.derivatives)), {"derivatives": update.derivatives, **beside}


def _described(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Name, shape and norm of what leaves, for its owner."""
    return {
        name: {"shape": list(value.shape), "norm": float(torch.linalg.vector_norm(value.double()))}
        for name, value in tensors.items()
    }


def _keep(
    folder: Path, ask: Ask, round: int, facts: dict[str, JsonValue], content: bytes, more: dict[str, Any]
) -> None:
    """Keep the latest answer, so that the same ask is answered without training; the content first, for the facts name it."""
    write_atomic(folder / "answer.bin", content)
    digest = sha256(content).hexdigest()
    kept = {"ask": ask.digest, "round": round, "sha256": digest, "facts": facts, "more": more}
    write_atomic(folder / "answer.json", json.dumps(kept))


def _kept(folder: Path, ask: Ask) -> tuple[dict[str, JsonValue], bytes, dict[str, Any]] | None:
    """The answer to this very ask, if it is the one that was kept, whole."""
    try:
        kept = json.loads((folder / "answer.json").read_text())
        content = (folder / "answer.bin").read_bytes()
    except (OSError, ValueError):
        return None
    if kept["ask"] != ask.digest or kept["sha256"] != sha256(content).hexdigest():
        return None
    return kept["facts"], content, kept["more"]


def _told(error: Exception) -> str:
    """A failure as the coordinator is told of it: its kind, its text, and where in the code; no values but those in its text."""
    places = [f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    return "\n".join([f"{type(error).__name__}: {error}", *places[-12:]])
