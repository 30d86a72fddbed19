"""Rules on devices, on who is selected among them, and on when a round is over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedloom.config.devices import OvercommitWait, QuorumWait
from fedloom.config.gradient import Backprop
from fedloom.config.rules.rule import Finding, clients_of
from fedloom.config.schema import Experiment

__all__ = ["selection_fit"]

_WHERE = "federation.selection"


def selection_fit(e: Experiment, selector: Any, synchronous: bool) -> Iterator[Finding]:
    """What a selector asks, or the clock, that the experiment does not have."""
    own, name = e.federation, e.federation.selection["name"]
    plain = name == "uniform"
    if e.engine.kind == "remote" and e.devices is not None:
        what = "the devices of a remote run are real, and take the time they take"
        yield Finding(
            "devices", what, "Take it out; `engine.round_deadline` and `engine.first` say when a round is over"
        )
    if e.devices is None and selector.needs_devices:
        what = f"{name} asks how fast clients are or when they are online, and nothing is known of that"
        yield Finding(_WHERE, what, "Say what they run on: devices: generated, or {kind: file, path: ...}")
    if e.devices is None and own.wait is not None:
        what = "without devices nobody is late: a round has all that were selected"
        yield Finding("federation.wait", what, "Take it out, or set devices: generated")
    if e.devices is not None and own.arrivals is not None:
        what = "how long clients take follows from their devices"
        yield Finding("federation.arrivals", what, "Take it out, or take devices out")
    if not synchronous and own.wait is not None:
        what = "an asynchronous algorithm says itself how many updates the server waits for"
        yield Finding("federation.wait", what, "Take it out")
    if not synchronous and not plain:
        what = "an asynchronous algorithm draws those who are free uniformly"
        yield Finding(_WHERE, what, "Set selection: uniform, or take it out")
    if own.clients_per_round is None and not plain:
        what = f"{name} would select all clients, whatever it thinks of them"
        yield Finding(_WHERE, what, "Set federation.clients_per_round")
    if selector.needs_losses and not isinstance(e.local.gradient, Backprop):
        what = f"{name} asks for the losses of single samples, which directional derivatives do not come by"
        yield Finding(_WHERE, what, "Set local.gradient: backprop, or choose another selector")
    wanted = own.clients_per_round or clients_of(e)
    if isinstance(own.wait, QuorumWait) and wanted is not None and own.wait.updates > wanted:
        what = f"{own.wait.updates} updates are waited for, and {wanted} clients are asked"
        yield Finding("federation.wait.updates", what, f"Set it to at most {wanted}")
    if isinstance(own.wait, OvercommitWait) and own.clients_per_round is None:
        what = "all clients are wanted already, so none more can be asked"
        yield Finding("federation.wait", what, "Set federation.clients_per_round")
