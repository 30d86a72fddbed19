"""Everything a process that trains must hold: model, data, who has which rows. Loaded once, used for every round."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedloom import tasks
from fedloom.config.schema import Data, Experiment
from fedloom.data.fields import Row, check_fields, map_fields, name_label
from fedloom.data.partition import Partition, deal
from fedloom.data.samples import cache_root
from fedloom.data.sources import Source, distinct, open_source
from fedloom.data.table import Table, build_table
from fedloom.errors import DataError, UsageError
from fedloom.local.weighting import check_weights
from fedloom.models.adapters import attach
from fedloom.models.binding import Binding
from fedloom.models.load import fingerprint, load_model, load_tokenizer
from fedloom.tasks.base import Rows, Task
from fedloom.vector.lora import deal_ranks
from fedloom.vector.streams import stream

if TYPE_CHECKING:
    from fedloom.algorithms import Algorithm

__all__ = [
    "Prepared",
    "PreparedData",
    "encode_source",
    "prepare",
    "prepare_data",
    "prepare_model",
    "strata_column",
]


@dataclass(frozen=True)
class PreparedData:
    """An experiment's rows as its task reads them, and who holds which; no weights are needed to know that."""

    experiment: Experiment
    task: Task
    tokenizer: Any
    labels: list[str]
    table: Table
    held_out: Rows
    train: Partition
    validation: Partition
    unseen: Rows = field(default_factory=lambda: np.arange(0), kw_only=True)
    """The numbers of the clients that never train, ascending."""

    @property
    def seen(self) -> Rows:
        """The numbers of the clients that may be selected, ascending."""
        return np.delete(np.arange(len(self.train)), self.unseen)

    @property
    def strata(self) -> tuple[NDArray[np.int32], list[str]]:
        """What the picture of the partition counts: each row's label, or its value in the column that parts the clients."""
        column = strata_column(self.experiment)
        if column is None:
            return np.zeros(len(self.table), dtype=np.int32), ["rows"]
        codes, values = self.table.codes(column)
        names = self.experiment.data.labels if column == _label_column(self.experiment) else {}
        return codes, [names.get(value, value) for value in values]


@dataclass(frozen=True)
class Prepared(PreparedData):
    """An experiment made ready; from round to round nothing here changes but the values in the binding."""

    algorithm: Algorithm
    binding: Binding
    base: str
    """Fingerprint of the frozen weights."""
    initial: Tensor
    """The trainable vector before any training, `[n]`."""
    step_scale: int = 1
    proxy: Rows = field(default_factory=lambda: np.arange(0), kw_only=True)
    """Rows that the server keeps to score layers with; they are not judged."""
    sample_losses: bool = field(default=False, kw_only=True)
    """Whether clients tell the mean square of their samples' losses."""

    @cached_property
    def ranks(self) -> list[int] | None:
        """The LoRA rank of every client, where the experiment gives them ranks; clients pooled into one have the largest."""
        ranks = getattr(self.experiment.adapter, "ranks", None)
        if ranks is None or self.algorithm.pooled:
            return None
        return deal_ranks(ranks, self.train.clients, self.experiment.seed)

    def with_algorithm(self, algorithm: Algorithm) -> Prepared:
        """The same experiment under another algorithm; for a pooled one, all clients become one that takes a cohort's steps.

        Clients that never train stay what they are, to be judged.
        """
        if not algorithm.pooled:
            return replace(self, algorithm=algorithm)
        seen = self.seen
        cohort = min(self.experiment.federation.clients_per_round or len(seen), len(seen))
        train, validation = (_pool(part, seen, self.unseen) for part in (self.train, self.validation))
        unseen = np.arange(1, len(train))
        return replace(self, algorithm=algorithm, train=train, validation=validation, step_scale=cohort, unseen=unseen)


def prepare(experiment: Experiment, algorithm: Algorithm) -> Prepared:
    """Load data and model, deal the rows to clients, attach the adapter.

    Raises FedloomError for whatever in them is not as the experiment says.
    """
    _device(experiment)  # one that is not there is refused before any row is read
    return prepare_model(prepare_data(experiment), algorithm)


def prepare_model(data: PreparedData, algorithm: Algorithm) -> Prepared:
    """Load the model and attach the adapter, for rows that are ready.

    Raises FedloomError for whatever in them is not as the experiment says.
    """
    experiment, task = data.experiment, data.task
    device, seed = _device(experiment), experiment.seed
    model = load_model(
        experiment.model,
        experiment.base,
        auto_class=task.auto_class,
        labels=data.labels,
        pad_token_id=data.tokenizer.pad_token_id,
        seed=seed,
        device=device,
        whole=[*task.heads, *getattr(experiment.adapter, "modules_to_save", [])],
    )
    digest = fingerprint(model, task.heads)
    adapted = attach(model, experiment.adapter, peft_task=task.peft_task, heads=task.heads, seed=seed)
    binding = Binding(adapted.to(device), base_dropout=experiment.model.dropout)
    initial = binding.home.values[0].cpu().clone()
    (
        algorithm.private(binding.layout),
        algorithm.trains(binding.layout, 1),
    )  # a pattern that matches nothing is refused now
    prepared = Prepared(**vars(data), algorithm=algorithm, binding=binding, base=digest, initial=initial)
    prepared.ranks  # noqa: B018 - a rank for no client, or a client without one, is refused now
    check_weights(prepared)
    return prepared


def prepare_data(experiment: Experiment) -> PreparedData:
    """Tokenise the rows, hold some out, deal the rest to clients; of the model, only the tokenizer is loaded.

    Raises FedloomError for whatever in the data is not as the experiment says.
    """
    data, base, seed = experiment.data, experiment.base, experiment.seed
    source = open_source(data, base)
    info = tasks.describe(experiment.model.task, base)
    check_fields(source.columns, data.fields, info.required_fields, info.optional_fields, where=source.name)
    label = info.label_field
    labels = (list(data.labels.values()) or distinct(source, data.columns_of(label)[0])) if label else []
    tokenizer = load_tokenizer(experiment.model, base, labels)
    task = tasks.load(experiment.model.task, base)(tokenizer, data, labels)
    own = [getattr(part, "column", None) for part in (data.partition, experiment.federation.weighting)]
    kept = {column for column in (_label_column(experiment), *own) if column}
    table = encode_source(experiment, task, tokenizer, source, keep=sorted(kept))

    strata = strata_column(experiment)
    codes = table.codes(strata)[0] if strata else None
    held_out, train, validation = deal(
        data, np.arange(len(table)), table, seed=seed, base=base, label=_label_column(experiment), strata=codes
    )
    unseen = _draw_unseen(data, len(train), seed)
    return PreparedData(experiment, task, tokenizer, labels, table, held_out, train, validation, unseen=unseen)


def _draw_unseen(data: Data, clients: int, seed: int) -> Rows:
    """The clients that never train.

    Raises DataError when none would be left to train.
    """
    count = data.unseen_of(clients)
    if count and count >= clients:
        what = f"{count} of {clients} clients would never train, and none be left"
        raise DataError(what, where="data.unseen_clients", fix="Lower it, or make more clients in data.partition")
    return np.sort(stream(seed, "unseen").choice(clients, size=count, replace=False, shuffle=False))


def encode_source(
    experiment: Experiment, task: Task, tokenizer: Any, source: Source, keep: Sequence[str] = ()
) -> Table:
    """The source's rows as the task's columns, from the cache of tables where they have been made before.

    keep: columns of the source to keep beside.
    """
    data, info = experiment.data, task.info

    def mapped(row: Row) -> dict[str, Any]:
        values = map_fields(row, *wanted)
        if info.label_field is not None:
            values[info.label_field] = name_label(values[info.label_field], data.labels, row.where)
        return values

    wanted = (data.fields, info.required_fields, info.optional_fields, info.list_fields)
    shape = [
        experiment.model.task,
        data.template,
        data.max_length,
        sorted(data.fields.items()),
        [list(data.labels.items()), data.prompt],
        getattr(task, "labels", []),
    ]
    key = json.dumps([shape, _tokenizer_digest(tokenizer)])
    return build_table(
        source,
        task.encoder(),
        map=mapped,
        key=key,
        keep=keep,
        cache=cache_root() / "tables",
    )


def _label_column(experiment: Experiment) -> str | None:
    """The column of the labels: the one a Dirichlet partition names, else the task's."""
    data: Data = experiment.data
    field = tasks.describe(experiment.model.task, experiment.base).label_field
    return getattr(data.partition, "label", None) or (data.columns_of(field)[0] if field else None)


def strata_column(experiment: Experiment) -> str | None:
    """The column by which held-out rows are stratified, and clients described: the labels, or the owners; None for neither."""
    return _label_column(experiment) or getattr(experiment.data.partition, "column", None)


def _pool(partition: Partition, clients: Rows, others: Rows) -> Partition:
    """The rows of these clients as one client's, the first; and the others after it."""
    rows = np.sort(np.concatenate([partition.rows(int(k)) for k in clients]))
    parts = [rows, *(partition.rows(int(k)) for k in others)]
    names = ["all", *(partition.clients[k] for k in others)]
    return Partition(names, np.cumsum([0, *map(len, parts)]), np.concatenate(parts))


def _device(experiment: Experiment) -> torch.device:
    """The device, and the number of threads, that the experiment asks for."""
    engine = experiment.engine
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if engine.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", where="engine.device", fix="use `auto` or `cpu`")
    return torch.device("cuda" if engine.device != "cpu" and torch.cuda.is_available() else "cpu")


def _tokenizer_digest(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template) + str(tokenizer.special_tokens_map)
    return hashlib.sha256(text.encode()).hexdigest()
