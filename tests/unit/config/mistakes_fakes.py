"""The good file that the table of mistakes changes, and the names that its loader knows: algorithms, tasks and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from fedloom.config.layers import SplitLayers
from fedloom.config.load import load
from fedloom.config.schema import Experiment
from fedloom.errors import DataError, FedloomError, nearest

BASE = """\
name: first
model: {path: "sample:tiny", task: classification}
adapter: {r: 4}
data:
  source: sample:reviews
  partition: {kind: iid, clients: 4}
algorithm: fedavg
federation:
  rounds: 3
local:
  steps: 5
engine: local
"""


class FedAvgOptions(BaseModel):
    """No options."""


class FedProxOptions(BaseModel):
    """One option."""

    mu: float = Field(0.01, ge=0)


@dataclass(frozen=True)
class FakeTask:
    """A task, as the rules see it."""

    required_fields: tuple[str, ...] = ("text", "label")
    optional_fields: tuple[str, ...] = ("text_pair",)
    metrics: tuple[str, ...] = ("accuracy",)
    label_field: str | None = "label"
    uses_templates: bool = False


@dataclass(frozen=True)
class FakeSample:
    """A packaged sample, as the rules see it."""

    kind: str
    columns: tuple[str, ...] = ()


class Method(BaseModel):
    """What all methods of a table share."""

    def client_state(self) -> None:
        """What a client keeps: nothing."""


class StatefulOptions(Method):
    """An algorithm that keeps something on each client, and whose correction moves all that is learnt."""

    title: ClassVar[str] = "Stateful"
    roles: ClassVar[frozenset[str]] = frozenset({"gradient correction"})
    mixed_ranks: ClassVar[bool] = True

    def client_state(self) -> None:
        """Only that it is the method's own matters."""


class FactorOptions(BaseModel):
    """An algorithm over every client's factors."""

    title: ClassVar[str] = "Factors"
    roles: ClassVar[frozenset[str]] = frozenset({"factors", "normalisation"})
    mixed_ranks: ClassVar[bool] = True


class RefactoringOptions(BaseModel):
    """An algorithm that writes all factors anew."""

    title: ClassVar[str] = "Refactoring"
    refactors: ClassVar[bool] = True


class HastyOptions(BaseModel):
    """An algorithm that waits for nobody."""

    title: ClassVar[str] = "Hasty"
    asynchronous: ClassVar[bool] = True


class ChoosyOptions(BaseModel):
    """An algorithm that chooses the layers."""

    title: ClassVar[str] = "Choosy"

    def layers(self, experiment: Experiment) -> SplitLayers:
        """Its choice."""
        return SplitLayers(kind="split")


class AnyoneOptions(BaseModel):
    """A selector that asks nothing of clients."""

    needs_devices: ClassVar[bool] = False
    needs_losses: ClassVar[bool] = False


class PickyOptions(BaseModel):
    """A selector that asks for speeds and losses."""

    model_config = ConfigDict(extra="forbid", strict=True)
    needs_devices: ClassVar[bool] = True
    needs_losses: ClassVar[bool] = True

    share: float = Field(0.5, gt=0, le=1, description="How many.")


ALGORITHMS: dict[str, type[BaseModel]] = {
    "fedavg": FedAvgOptions,
    "fedprox": FedProxOptions,
    "stateful": StatefulOptions,
    "factors": FactorOptions,
    "refactoring": RefactoringOptions,
    "hasty": HastyOptions,
    "choosy": ChoosyOptions,
    "local": FedAvgOptions,
}
SELECTORS: dict[str, type[BaseModel]] = {"uniform": AnyoneOptions, "picky": PickyOptions}
TASKS = {
    "classification": FakeTask(),
    "causal_lm": FakeTask(("instruction", "output"), ("input",), ("perplexity",), None, True),
}
SAMPLES = {"tiny": FakeSample("model"), "reviews": FakeSample("dataset", ("text", "label", "shop"))}


def _look_up(name: str, table: dict[str, Any], noun: str) -> Any:
    if name not in table:
        raise FedloomError(f"there is no {noun} {name!r}", fix=nearest(name, list(table)))
    return table[name]


def fake_sample(name: str, kind: str) -> FakeSample:
    """A sample of a kind."""
    found: FakeSample = _look_up(name, SAMPLES, "sample")
    if found.kind != kind:
        raise DataError(f"the sample {name!r} is a {found.kind}, not a {kind}")
    return found


def load_fake(path: Path, overrides: Sequence[str] = (), base: Path | None = None) -> Experiment:
    """`load` with the names above."""
    return load(
        path,
        overrides,
        algorithm=lambda name: _look_up(name, ALGORITHMS, "algorithm"),  # type: ignore[no-any-return]
        selector=lambda name: _look_up(name, SELECTORS, "selector"),  # type: ignore[no-any-return]
        task=lambda name: _look_up(name, TASKS, "task"),  # type: ignore[no-any-return]
        sample=fake_sample,
        base=base,
    )


def write_folder(folder: Path) -> Path:
    """A user's folder: the experiment and what lies around it."""
    (folder / "experiment.yaml").write_text(BASE)
    (folder / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n')
    (folder / "empty.csv").write_text("")
    (folder / "notes.txt").write_text("a note")
    (folder / "clients.json").write_text("{}")
    (folder / "clients.h5").write_text("many methods")
    (folder / "mine.py").write_text("raise RuntimeError('never imported by a check')\n")
    return folder / "experiment.yaml"
