"""`manifest.json`: what a run was made of, so that it can be repeated, resumed and trusted."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedloom.config.schema import Experiment
from fedloom.devices.make import devices_digest
from fedloom.errors import RunError
from fedloom.local.prepare import Prepared
from fedloom.tracking.checkpoint import Progress
from fedloom.tracking.reading import RunFiles

__all__ = ["check_same", "describe_prepared", "first_manifest", "outcome"]

_PACKAGES = ("fedloom", "torch", "transformers", "peft", "datasets", "numpy", "safetensors")
_FIXED = ("base_model_digest", "data", "partition_digest", "unseen_clients", "trainable", "devices_digest")


def first_manifest(experiment: Experiment) -> dict[str, Any]:
    """What is known before anything is loaded."""
    return {
        "name": experiment.name,
        "status": "running",
        "fedloom": version("fedloom"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        "base": str(experiment.base),
        "seed": experiment.seed,
        "algorithm": experiment.algorithm,
        "task": experiment.model.task,
        "model": experiment.model.path,
        "metric": experiment.evaluation.metric,
        "rounds": experiment.federation.rounds,
        "rounds_done": 0,
        "started": _now(),
    }


def describe_prepared(prepared: Prepared) -> dict[str, Any]:
    """What is known once model, data and partition are loaded."""
    layout = prepared.binding.layout
    return {
        "base_model_digest": prepared.base,
        "data": {
            "source": prepared.experiment.data.source,
            "digest": prepared.table.digest,
            "rows": len(prepared.table),
            "held_out": len(prepared.held_out),
            "dropped": dict(prepared.table.dropped),
            "labels": prepared.labels,
        },
        "partition_digest": prepared.train.digest,
        "clients": len(prepared.train),
        "unseen_clients": [prepared.train.clients[k] for k in prepared.unseen],
        "trainable": {
            "n": layout.n,
            "model_parameters": sum(p.numel() for p in prepared.binding.model.parameters()),
            "digest": layout.digest,
            "tensors": [{"name": s.name, "shape": list(s.shape)} for s in layout.slices],
        },
        "devices_digest": devices_digest(prepared.experiment.devices, prepared.experiment.base),
        "model_bytes": _bytes(prepared.binding.model),
        "device": str(prepared.binding.device),
        "threads": torch.get_num_threads(),
    }


def check_same(manifest: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with other data, another partition, another base model or another adapter than the run began with."""
    for key in _FIXED:
        if key in manifest and manifest[key] != now[key]:
            raise RunError(
                f"`{key}` is not what it was when the run began",
                where=str(path),
                why="the data, the model or the software has changed since",
                fix="restore it, or begin a new run",
            )


def outcome(path: Path, progress: Progress) -> dict[str, Any]:
    """What came of it, from the records."""
    judged = [r for r in RunFiles.open(path).rounds if any(key.startswith("eval_") for key in r)]
    best = {"round": progress.best_round, "value": progress.best_value} if progress.best_round is not None else None
    return {
        "before": _metrics(judged[0]) if judged else {},
        "after": _metrics(judged[-1]) if judged else {},
        "best": best,
        "rounds_done": progress.round,
        "totals": dict(progress.totals),
        "seconds": round(progress.seconds, 3),
        "finished": _now(),
    }


def _bytes(model: torch.nn.Module) -> int:
    """What the weights take, base and adapter, and all buffers."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if key.startswith("eval_")}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
