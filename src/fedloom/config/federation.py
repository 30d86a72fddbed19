"""The rounds: how many, with whom, what an update weighs and when it arrives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fedloom.config.devices import Wait
from fedloom.config.section import Positive, Schedule, Section

__all__ = [
    "AdaptedWeighting",
    "Arrivals",
    "ConstantArrivals",
    "EarlyStopping",
    "EpisodesWeighting",
    "Federation",
    "FunctionWeighting",
    "LognormalArrivals",
    "SamplesWeighting",
    "StepsWeighting",
    "TokensWeighting",
    "UniformWeighting",
    "Weighting",
]


class EarlyStopping(Section):
    """Stop when the watched metric has not improved for some evaluations."""

    patience: Positive = Field(description="Evaluations without improvement after which the run ends.")
    min_delta: Annotated[float, Field(ge=0)] = Field(0.0, description="The least change that counts as an improvement.")


class ConstantArrivals(Section):
    """All clients take equally long."""

    kind: Literal["constant"]
    seconds: Annotated[float, Field(gt=0)] = Field(
        1.0, description="From sending a model until the update has arrived."
    )


class LognormalArrivals(Section):
    """A client's time is seconds x exp(speed_sigma x z_k + sigma x z): z_k its own, z another each time, standard normal."""

    kind: Literal["lognormal"]
    seconds: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Median time from sending a model until the update has arrived."
    )
    sigma: Annotated[float, Field(ge=0)] = Field(1.0, description="How much one client's times differ from each other.")
    speed_sigma: Annotated[float, Field(ge=0)] = Field(
        0.0, description="How much clients differ: at 1, one in six takes at least e times the median, always."
    )


Arrivals = Annotated[ConstantArrivals | LognormalArrivals, Field(discriminator="kind")]


class SamplesWeighting(Section):
    """By the rows a client trains on."""

    kind: Literal["samples"]


class TokensWeighting(Section):
    """By the tokens of those rows."""

    kind: Literal["tokens"]


class StepsWeighting(Section):
    """By the optimizer steps a client takes in a round."""

    kind: Literal["steps"]


class UniformWeighting(Section):
    """All clients alike."""

    kind: Literal["uniform"]


class EpisodesWeighting(Section):
    """By the number of different values a column has among a client's rows: its episodes, say."""

    kind: Literal["episodes"]
    column: str = Field(min_length=1, description="The column whose values name the episodes.")


class AdaptedWeighting(Section):
    """By rows + mu x episodes (FedMABench's adapted weight, where a row is a step of an episode)."""

    kind: Literal["adapted"]
    column: str = Field(min_length=1, description="The column whose values name the episodes.")
    mu: Annotated[float, Field(ge=0)] = Field(
        7.0, description="How many rows an episode counts for; FedMABench takes 7."
    )


class FunctionWeighting(Section):
    """By a function of yours, `f(client: str, rows: int, tokens: int) -> float`; short: `weighting: module:attribute`."""

    kind: Literal["function"]
    function: str = Field(min_length=1, description="The function, as `module:attribute`.")


def _weighting_in_short(value: Any) -> Any:
    """`samples` is {kind: samples}, `module:attribute` is {kind: function, function: module:attribute}."""
    if not isinstance(value, str):
        return value
    return {"kind": "function", "function": value} if ":" in value else {"kind": value}


Weighting = Annotated[
    SamplesWeighting
    | TokensWeighting
    | StepsWeighting
    | UniformWeighting
    | EpisodesWeighting
    | AdaptedWeighting
    | FunctionWeighting,
    Field(discriminator="kind"),
]


class Federation(Section):
    """The rounds: how many, with how many clients, and what happens when one fails."""

    rounds: Positive = Field(description="Number of rounds.")
    clients_per_round: Positive | None = Field(
        None,
        description="Clients selected a round; all when left out. With an asynchronous algorithm, the clients "
        "that are under way at any time.",
    )
    selection: dict[str, Any] = Field(
        {"name": "uniform"},
        description="How the clients of a round are selected: a name, or {name: ..., its options}; `fedloom list selectors`.",
    )
    wait: Wait | None = Field(None, description="With `devices`: when a round is over; `all` when left out.")
    weighting: Annotated[Weighting, BeforeValidator(_weighting_in_short)] = Field(
        SamplesWeighting(kind="samples"),
        description="What a client's update weighs: a kind, or a function of yours as `module:attribute`.",
    )
    on_failure: Literal["stop", "drop"] = Field(
        "stop",
        description="When a client fails: stop the run, or drop the client from the round and re-weight the others.",
    )
    arrivals: Arrivals | None = Field(
        None,
        description="With an asynchronous algorithm: how long clients take, which decides in what order their updates "
        "arrive; `lognormal` when left out, and not with `devices`, which know.",
    )
    schedule: Schedule = Field(Schedule(), description="Learning rate across rounds.")
    early_stopping: EarlyStopping | None = Field(None, description="Stop early when the watched metric stalls.")
    yardsticks: list[Literal["local", "central"]] = Field(
        [],
        description="Also run, with the same budget, to place the run between: each client alone, all data pooled.",
    )
