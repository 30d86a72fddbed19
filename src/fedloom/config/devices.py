"""What the clients run on, who is chosen among them, and when a round is over."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.config.section import Positive, Section

__all__ = [
    "AlikeDevices",
    "AllWait",
    "DeadlineWait",
    "Devices",
    "FileDevices",
    "GeneratedDevices",
    "OvercommitWait",
    "QuorumWait",
    "Wait",
]

Above = Annotated[float, Field(gt=0)]


class _Devices(Section):
    cost: Above = Field(
        1.0,
        description="What a forward pass of this model takes over one of the model that `ms_per_sample` was measured with.",
    )


class AlikeDevices(_Devices):
    """All devices are equal and always online."""

    kind: Literal["alike"] = Field(description="Where the devices come from.")
    ms_per_sample: Above = Field(80.0, description="Milliseconds of a forward pass over one sample.")
    down_kbps: Above = Field(6000.0, description="Kilobits (1000 bits) a second that a device receives.")
    up_kbps: Above = Field(4000.0, description="Kilobits a second that a device sends.")


class GeneratedDevices(_Devices):
    """Phones drawn at random, with the published shapes of real ones."""

    kind: Literal["generated"] = Field(description="Where the devices come from.")
    correlation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="How closely the size of a client's data goes together with speed, and with time online."
    )
    days: Positive = Field(7, description="Days after which the times online repeat.")
    always_online: bool = Field(False, description="Devices differ in speed alone.")


class FileDevices(_Devices):
    """Devices from a Parquet file, dealt to the clients at random."""

    kind: Literal["file"] = Field(description="Where the devices come from.")
    path: str = Field(min_length=1, description="The file; `fedloom devices` makes and describes one.")
    reuse: bool = Field(False, description="Where there are fewer devices than clients, deal them out more than once.")


Devices = Annotated[AlikeDevices | GeneratedDevices | FileDevices, Field(discriminator="kind")]


class AllWait(Section):
    """The round ends when all that were asked have answered or gone offline."""

    kind: Literal["all"] = Field(description="When a round is over.")


class OvercommitWait(Section):
    """More are asked than are wanted, and the first count (FedScale and Oort: 1.3 times as many)."""

    kind: Literal["overcommit"] = Field(description="When a round is over.")
    factor: Annotated[float, Field(ge=1)] = Field(1.3, description="How many times `clients_per_round` are asked.")


class DeadlineWait(Section):
    """The round ends after some time, or sooner when all that were asked have answered or gone offline."""

    kind: Literal["deadline"] = Field(description="When a round is over.")
    seconds: Above = Field(description="Virtual seconds from asking until the last update is taken.")


class QuorumWait(Section):
    """The round ends with a number of updates."""

    kind: Literal["quorum"] = Field(description="When a round is over.")
    updates: Positive = Field(description="How many updates are enough.")


Wait = Annotated[AllWait | OvercommitWait | DeadlineWait | QuorumWait, Field(discriminator="kind")]
