"""An experiment made ready by one client, on its own rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedloom import algorithms, selection, tasks
from fedloom.algorithms import Algorithm
from fedloom.config.load import load, read_document
from fedloom.config.schema import Experiment, IidPartition
from fedloom.config.site import SiteData
from fedloom.data.partition import Partition, split_validation
from fedloom.data.samples import check_sample
from fedloom.engines.remote.messages import Holding
from fedloom.errors import DataError
from fedloom.local.prepare import Prepared, PreparedData, prepare_data, prepare_model
from fedloom.tasks.base import Rows

__all__ = ["Own", "OwnPrepared", "load_experiment", "prepare_own"]


@dataclass(frozen=True)
class OwnPrepared(Prepared):
    """An experiment made ready on one client's rows: client 0 here, one of many elsewhere."""

    total: int = field(default=1, kw_only=True)
    """Clients of the federation."""
    rank: int | None = field(default=None, kw_only=True)
    """This client's LoRA rank, where ranks differ."""

    @property
    def seen(self) -> Rows:
        """One number for every client of the federation, of which the rules of some methods ask how many there are."""
        return np.arange(self.total)

    @cached_property
    def ranks(self) -> list[int] | None:
        """See `Prepared.ranks`; which client has which, the coordinator knows."""
        return None if self.rank is None else [self.rank]


@dataclass(frozen=True)
class Own:
    """What a client holds of a run, and what it says of it."""

    prepared: OwnPrepared
    key: str
    """Two runs with the same have the same model, adapter and first vector."""

    @property
    def holding(self) -> Holding:
        """All that is said of the rows."""
        rows = self.prepared.train.rows(0)
        tokens = int(self.prepared.table.lengths[rows].sum())
        return Holding(rows=len(rows), tokens=tokens, validation=len(self.prepared.validation.rows(0)))

    def among(self, total: int, rank: int | None) -> OwnPrepared:
        """The same, as one of so many clients, with this rank."""
        return replace(self.prepared, total=total, rank=rank)


def load_experiment(path: Path, site: SiteData, base: Path) -> Experiment:
    """The experiment of a file that the coordinator wrote, with this client's rows in place of its own.

    Raises ConfigError with every mistake at once: what is wrong here can be the site's word as well as the experiment's.
    """
    # One client's rows are not dealt; what the file must say all the same is any column that there is.
    given: dict[str, Any] = {
        "data.source": site.source,
        "data.partition": {"kind": "column", "column": _any_column(path, site, base)},
    }
    given |= {f"data.fields.{ours}": theirs for ours, theirs in site.fields.items()}
    if "split" in site.model_fields_set:
        given["data.split"] = site.split
    if site.limit is not None:
        given["data.limit"] = site.limit
    if site.where:
        given["data.where"] = site.where
    return load(
        path,
        [f"{key}={json.dumps(value)}" for key, value in given.items()],
        algorithm=lambda name: algorithms.resolve(name, base),
        selector=lambda name: selection.resolve(name, base),
        clash=algorithms.clash,
        task=lambda name: tasks.describe(name, base),
        sample=check_sample,
        base=base,
    )


def _any_column(path: Path, site: SiteData, base: Path) -> str:
    said = read_document(path).data
    required = tasks.describe(said["model"]["task"], base).required_fields
    if not required:
        return "row"
    column = {**said["data"].get("fields", {}), **site.fields}.get(required[0], required[0])
    return column if isinstance(column, str) else column[0]


def prepare_own(
    experiment: Experiment, name: str, algorithm: Algorithm, site: SiteData, like: Own | None = None
) -> Own:
    """Encode the client's rows, split them as a local run splits this client's, and load the model, or take that of `like`.

    Raises FedloomError for whatever in rows or model is not as the experiment says.
    """
    data = experiment.data
    alone = data.model_copy(
        update={
            "labels": _labels(data.labels, site.labels), "validation": 0.0, "held_out": 0.0, "unseen_clients": 0.0,
            "partition": IidPartition(kind="iid", clients=1),
        }
    )  # fmt: skip
    own = prepare_data(experiment.model_copy(update={"data": alone}))
    whole = Partition([name], own.train.offsets, own.train.indices)
    train, validation = split_validation(whole, data.validation, experiment.seed, by_place=True)
    rows: PreparedData = replace(own, experiment=experiment, train=train, validation=validation)
    made_of = [str(experiment.base), experiment.model.model_dump(), experiment.adapter.model_dump(), experiment.seed]
    key = json.dumps([*made_of, rows.labels, experiment.engine.device], sort_keys=True)
    if like is not None and like.key == key:
        before = like.prepared
        before.binding.fold({})
        model = Prepared(
            **vars(rows), algorithm=algorithm, binding=before.binding, base=before.base, initial=before.initial
        )
    else:
        model = prepare_model(rows, algorithm)
    return Own(OwnPrepared(**{f.name: getattr(model, f.name) for f in fields(Prepared)}), key)


def _labels(names: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The experiment's labels, in its order, by what stands in this client's column."""
    if not own:
        return dict(names)
    given, known = set(own.values()), set(names.values())
    strange, missing = sorted(given - known), sorted(known - given)
    if strange or missing:
        what = (
            f"the experiment has no label {strange[0]!r}"
            if strange
            else f"no value stands for the label {missing[0]!r}"
        )
        raise DataError(what, where="data.labels", fix=f"Name each once: {', '.join(names.values())}")
    order = list(names.values())
    return dict(sorted(own.items(), key=lambda item: order.index(item[1])))
