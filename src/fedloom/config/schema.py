"""The experiment file, typed and strict: every option, its default and what it means.

The larger sections have files of their own and are imported from here too. `fedloom explain KEY` prints these descriptions;
`fedloom explain --schema` prints them as a JSON Schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from fedloom.config.adapter import Adapter, FullAdapter, LoraAdapter
from fedloom.config.data import (
    ColumnPartition,
    Data,
    DirichletPartition,
    GivenPartition,
    IidPartition,
    Partition,
    QuantityPartition,
)
from fedloom.config.devices import AlikeDevices, Devices, FileDevices, GeneratedDevices
from fedloom.config.engine import Engine, LocalEngine, RayEngine, RemoteEngine
from fedloom.config.federation import (
    AdaptedWeighting,
    Arrivals,
    ConstantArrivals,
    EarlyStopping,
    EpisodesWeighting,
    Federation,
    FunctionWeighting,
    LognormalArrivals,
)
from fedloom.config.gradient import Backprop, Gradient
from fedloom.config.layers import AllLayers, LayerSelection
from fedloom.config.section import Fraction, Positive, Schedule, Section

__all__ = [
    "AdaptedWeighting",
    "Adapter",
    "AlikeDevices",
    "Arrivals",
    "Checkpoints",
    "ColumnPartition",
    "ConstantArrivals",
    "Data",
    "Devices",
    "DirichletPartition",
    "EarlyStopping",
    "Engine",
    "EpisodesWeighting",
    "Evaluation",
    "Experiment",
    "Federation",
    "FileDevices",
    "FullAdapter",
    "FunctionWeighting",
    "Generate",
    "GeneratedDevices",
    "GivenPartition",
    "IidPartition",
    "Local",
    "LocalEngine",
    "LognormalArrivals",
    "LoraAdapter",
    "Model",
    "Partition",
    "QuantityPartition",
    "RayEngine",
    "RemoteEngine",
    "Schedule",
    "Section",
]


class Model(Section):
    """The base model: loaded once, frozen, never sent."""

    path: str = Field(
        min_length=1,
        description="A hub name, a local folder, a packaged sample (`sample:smollm2-135m-instruct`), "
        "or your own builder as `module:attribute`.",
    )
    task: str = Field(
        min_length=1,
        description="`causal_lm` (instruction tuning), `classification`, `span_qa` (the answer is a part of a text), or your own "
        "`module:attribute`.",
    )
    revision: str | None = Field(None, description="The commit or tag of a hub model; pin it to reproduce a run.")
    dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="Type of the frozen weights; what is learnt is always fp32."
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        None,
        description="Keep the frozen linear maps in 8 bits, or in 4 (NF4, as QLoRA does), through bitsandbytes; they are read back "
        "as `dtype`, a map at a time.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations backwards: less memory, about 1.3x the time."
    )
    dropout: bool = Field(
        False,
        description="Also use the base model's own dropout modules in training (the adapter's dropout is set in "
        "`adapter.dropout`; attention-probability dropout stays off).",
    )


class Local(Section):
    """What a selected client does in a round."""

    optimizer: Literal["sgd", "adam", "adamw"] = Field("adamw", description="The local optimizer.")
    lr: Annotated[float, Field(gt=0)] = Field(1e-3, description="Learning rate.")
    momentum: Fraction = Field(0.0, description="Momentum of sgd.")
    nesterov: bool = Field(False, description="Nesterov momentum, for sgd with momentum.")
    betas: list[Fraction] = Field([0.9, 0.999], min_length=2, max_length=2, description="Decay of adam's two averages.")
    eps: Annotated[float, Field(gt=0)] = Field(1e-8, description="Adam's epsilon.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        0.0, description="L2 penalty (sgd, adam) or decoupled decay (adamw)."
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(None, description="Largest norm of a client's gradient.")
    steps: Positive | None = Field(None, description="Optimizer steps a round; or give `epochs`.")
    epochs: Positive | None = Field(None, description="Passes over the client's rows a round; or give `steps`.")
    batch_size: Positive = Field(8, description="Examples in a batch.")
    accumulate: Positive = Field(1, description="Batches whose gradients are averaged into one step.")
    schedule: Schedule = Field(Schedule(), description="Learning rate within a round, over the steps.")
    optimizer_state: Literal["reset", "keep"] = Field(
        "reset", description="Begin each round with a fresh optimizer, or go on with the client's own."
    )
    grouping: Literal["auto", "grouped", "in_place"] = Field(
        "auto",
        description="Train the clients of a group in one batched pass, or one by one; `auto` picks the faster.",
    )
    gradient: Gradient = Field(
        Backprop(),
        description="How a local step gets its gradient: by backpropagation, or estimated from derivatives along random "
        "directions, which takes forward passes alone and so much less memory.",
    )


class Generate(Section):
    """Answers written by the model itself, one most likely token after another, and compared with the rows' own."""

    rows: Positive = Field(64, description="Held-out rows to answer, drawn at random once; all when there are fewer.")
    max_new_tokens: Positive = Field(64, description="Longest answer in tokens.")
    answer: Literal["number", "last_number", "text"] = Field(
        "number",
        description="What must agree: the number behind the last # (GSM8K: `#### 18`), the last number (SVAMP, MultiArith), or the "
        "whole text but for case, punctuation, articles and spaces.",
    )


class Evaluation(Section):
    """When and how models are judged."""

    every: Annotated[int, Field(ge=0)] = Field(
        1, description="Judge on the held-out rows every so many rounds; 0: only before and after."
    )
    clients_every: Annotated[int, Field(ge=0)] = Field(
        0, description="Judge on every client's own rows every so many rounds; 0: only after."
    )
    batch_size: Positive = Field(32, description="Examples in an evaluation batch.")
    generate: Generate | None = Field(
        None,
        description="Let a language model also write its own answers to held-out rows, and compare them: `eval_exact_match`.",
    )
    metric: str = Field("eval_loss", description="The watched metric: names the best model and drives early stopping.")


class Checkpoints(Section):
    """What is kept on disk to resume from."""

    every: Positive = Field(1, description="Save every so many rounds (and at the end).")
    keep_last: Positive = Field(2, description="Newest checkpoints to keep.")
    keep_every: Positive | None = Field(None, description="Also keep every n-th round for good.")
    keep_best: bool = Field(True, description="Also keep the best by the watched metric.")
    adapter: Literal["last", "best"] = Field("last", description="Which round `adapter/` holds in the end.")


class Experiment(Section):
    """One federation, as a file."""

    name: str = Field(
        min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Names the run directory."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Everything random follows from it.")
    model: Model = Field(description="The base model.")
    adapter: Adapter = Field(LoraAdapter(), description="What is learnt.")
    data: Data = Field(description="The rows and who holds them.")
    algorithm: dict[str, Any] = Field(
        {"name": "fedavg"},
        description="What clients and server compute: a name, or {name: ..., its options, with: other methods}.",
    )
    layers: LayerSelection = Field(
        AllLayers(),
        description="Which layers train in a round; the others stay as they are, and nothing of them is sent back. What belongs to "
        "no numbered layer, such as a head, always trains, but where `given` names parts by expressions.",
    )
    federation: Federation = Field(description="The rounds.")
    devices: Devices | None = Field(
        None,
        description="What the clients run on: how fast they compute and send, and when they are online. With it the run has a "
        "virtual clock.",
    )
    local: Local = Field(Local(epochs=1), description="What a client does in a round.")
    engine: Engine = Field(LocalEngine(), description="Where groups run.")
    evaluation: Evaluation = Field(Evaluation(), description="When and how models are judged.")
    checkpoints: Checkpoints = Field(Checkpoints(), description="What is kept to resume from.")
    tensorboard: bool = Field(True, description="Write curves for TensorBoard.")

    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @property
    def base(self) -> Path:
        """The folder that relative paths and `module:attribute` names start from: the experiment file's own."""
        return self._base
