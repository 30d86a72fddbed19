"""Where groups run: in this process or several, on a Ray cluster, on the machines of the clients."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedloom.config.section import Positive, Section

__all__ = ["Engine", "LocalEngine", "RayEngine", "RemoteEngine"]


class _Engine(Section):
    """What every engine can be told."""

    group_size: Positive | Literal["auto"] = Field(
        "auto", description="Clients trained together; `auto` fills the matrix products and bounds the memory."
    )
    threads: Positive | None = Field(
        None,
        description="Threads of torch in a process; torch's own choice when left out. One is steadiest on a shared machine.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` is cuda where there is one.")
    wire: bool = Field(
        False, description="Encode and decode every message as a deployment would, to prove it changes nothing."
    )


class LocalEngine(_Engine):
    """Train on this machine."""

    kind: Literal["local"] = Field("local", description="Where groups run.")
    workers: Positive | Literal["auto"] = Field(
        1,
        description="Processes that train: 1 is this one; `auto` is one a GPU, or two a CPU socket. The result is the same bytes.",
    )


class RayEngine(_Engine):
    """Train on a Ray cluster."""

    kind: Literal["ray"] = Field(description="Where groups run.")
    address: str | None = Field(
        None,
        description="`host:port` of a cluster that is running, or `auto` for this machine's; else one is started here.",
    )
    workers: Positive | Literal["auto"] = Field(
        "auto", description="Processes that train; `auto` is as many as the cluster has GPUs, or half its CPUs, for."
    )
    cpus: Annotated[float, Field(gt=0)] = Field(1.0, description="CPUs that a worker reserves.")
    gpus: Annotated[float, Field(ge=0)] = Field(0.0, description="GPUs that a worker reserves; 0.25 puts four on one.")


class RemoteEngine(_Engine):
    """Train where the data lives: every client on a machine of its own, over a broker."""

    kind: Literal["remote"] = Field(description="Where groups run.")
    kit: str | None = Field(
        None, description="Folder of the operator's kit; FEDLOOM_KIT in the environment when left out."
    )
    round_deadline: Annotated[float, Field(gt=0)] = Field(
        600.0,
        description="Seconds after which a round goes on without those who have not answered; leases follow from it.",
    )
    quorum: Positive | None = Field(
        None, description="Updates without which a round at its deadline fails; all that were asked for when left out."
    )
    first: Positive | None = Field(
        None,
        description="Close a round when so many updates have arrived: select more clients than that.",
    )


Engine = Annotated[LocalEngine | RayEngine | RemoteEngine, Field(discriminator="kind")]
