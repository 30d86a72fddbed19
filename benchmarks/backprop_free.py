"""Steps without backpropagation: their memory by depth, their time beside the forward passes that they are made of, and a twin.

    memory    the peak of one step above what is resident before it, each in a fresh process; one direction at a time. Inference
              passes the batch whole; steps without backpropagation pass it in pieces, for no graph ties its rows together
    suffix    N central differences, with the layers above the middle trained, against 2N bare forward passes over those layers
    batched   the directions of a step in joint passes against one by one
    grouped   the clients of a group in joint passes against one by one
    layers    8 of 32 layers trained against all of them, by backpropagation: the uplink, and the step
    twin      FwdLLM as released: every parameter of the model copied and perturbed, frozen ones by zero, and all of them uploaded

Random Llama weights, LoRA on every linear map, one thread. CPU seconds; ratios are medians of what ran in the same turn, with the
least and the largest.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from common import TINY, Setting, Size, build_model, cpu_seconds, machine, make_prepared, make_tokens, ratio, rotate
from memory import forget_peak, resident

MODES = ("inference", "central", "jvp", "backprop")
LIMITS = {"central": 1.2, "jvp": 2.2}


def trainer(setting: Setting, size: Size, gradient: dict[str, Any], grouped: bool = True) -> tuple[Any, Any]:
    """A trainer of that gradient, and the group of all clients, each with one step."""
    from fedloom.config.schema import Local
    from fedloom.local.group import Group
    from fedloom.local.train import make_trainer

    prepared = make_prepared(setting, make_tokens(setting, size)[:, : setting.batch], build_model(size))
    local = Local(optimizer="sgd", lr=0.1, steps=1, batch_size=setting.batch, gradient=gradient)  # type: ignore[arg-type]
    prepared = replace(prepared, experiment=prepared.experiment.model_copy(update={"local": local}))
    made = make_trainer(prepared, grouped)
    members = [made.member(prepared.train, k, 1) for k in range(setting.clients)]
    return made, Group(
        trainer=made, members=members, anchor=prepared.initial.expand(setting.clients, -1).clone(), round=1
    )


def step(group: Any, only: Any = None) -> None:
    """One local step of every client."""
    for member in group.members:
        member.derivatives.clear()
    group.train(group.anchor, lambda g, w, _: g, only=only)


def memory(mode: str, setting: Setting, size: Size) -> float:
    """MB of the peak of one step above what was resident before."""
    torch.set_num_threads(1)
    gradient = {"kind": "backprop"} if mode in ("inference", "backprop") else {"kind": mode, "directions": 1}
    _, small = trainer(Setting(1, 1, 8), TINY, gradient)
    step(small)  # what is made once, such as the table of normals, is no part of a step
    made, group = trainer(setting, size, gradient)
    if mode in LIMITS:  # nor is the check of h
        made.estimator._checked = True
    gc.collect()
    forget_peak()
    before = resident("VmRSS")
    if mode == "inference":
        with torch.no_grad(), made.binding.group(group.anchor):
            made.mean_losses(group.members, [m.steps[0] for m in group.members], 1, None, backward=False)
    else:
        step(group)
    return resident("VmHWM") - before


def in_child(mode: str, depth: int, arguments: Sequence[str]) -> float:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--mode", mode, "--depths", str(depth), *arguments]
    # What is freed goes back at once: the peak is then what is held, not what the allocator keeps.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return float(json.loads(said.splitlines()[-1]))


def tell_memory(depths: Sequence[int], repetitions: int, arguments: Sequence[str]) -> None:
    """A line a depth: each mode's peak, and as a ratio to inference."""
    for depth in depths:
        peaks = {mode: min(in_child(mode, depth, arguments) for _ in range(repetitions)) for mode in MODES}
        told = ", ".join(f"{mode} {mb:.0f} MB ({mb / max(peaks['inference'], 1e-9):.2f})" for mode, mb in peaks.items())
        print(f"  {depth:2} layers: {told}")


def against(title: str, above: Callable[[], object], below: Callable[[], object], repetitions: int) -> None:
    """A line: the ratio of two times."""
    methods = {"above": lambda: cpu_seconds(above), "below": lambda: cpu_seconds(below)}
    seconds = rotate(methods, repetitions)
    print(f"  {title}: {ratio(seconds['above'], seconds['below'])}")


def suffix(setting: Setting, size: Size, directions: int, repetitions: int) -> None:
    """N central differences against 2N forward passes."""
    from fedloom.local.passes import Passes

    made, group = trainer(setting, size, {"kind": "central", "directions": directions, "distribution": "rademacher"})
    only = made.binding.layout.mask(lambda s: s.layer is not None and s.layer >= size.layers // 2)
    step(group, only)
    parts = [m.steps[0] for m in group.members]
    passes = Passes(made, group.members, parts, group.anchor)
    passes.keep_prefix(made.estimator._prefix)
    owners = [k for k in passes.everyone for _ in range(2 * directions)]
    rows = group.anchor[owners]
    title = f"{directions} central differences over 2 x {directions} forward passes of the suffix ({setting})"
    against(title, lambda: step(group, only), lambda: passes.losses(rows, owners), repetitions)


def batched(setting: Setting, size: Size, directions: int, repetitions: int) -> None:
    """Directions one by one against all at once."""
    for kind in ("central", "jvp"):
        gradient = {"kind": kind, "directions": directions}
        _, alone = trainer(setting, size, gradient, grouped=False)
        _, joint = trainer(setting, size, gradient)
        title = f"{kind}, {directions} directions one by one over joint passes ({setting})"
        against(title, lambda one=alone: step(one), lambda all=joint: step(all), repetitions)  # type: ignore[misc]


def grouped(setting: Setting, size: Size, repetitions: int) -> None:
    """Clients one by one, each with its directions in joint passes, against all in joint passes."""
    gradient = {"kind": "central", "directions": 2}
    _, joint = trainer(setting, size, gradient)
    alone = [replace(joint, members=[m], anchor=joint.anchor[k : k + 1]) for k, m in enumerate(joint.members)]
    title = f"clients one by one over joint passes, 2 directions ({setting})"
    against(title, lambda: [step(one) for one in alone], lambda: step(joint), repetitions)


def layers(setting: Setting, size: Size, chosen: int, repetitions: int) -> None:
    """Some layers trained against all: the highest ones, those in the middle of the upper half, and evenly spread ones."""
    made, group = trainer(setting, size, {"kind": "backprop"})
    layout, deep = made.binding.layout, size.layers
    half = deep // 2 + (deep // 2 - chosen) // 2
    choices = {
        "the highest": range(deep - chosen, deep),
        "amid the upper half": range(half, half + chosen),
        "evenly spread": range(0, deep, deep // chosen),
    }
    for name, numbers in choices.items():
        only = layout.mask(lambda s, own=numbers: s.layer in own)  # type: ignore[misc]
        print(f"  {chosen} of {deep} layers, {name}: the uplink {int(only.sum()) / layout.n:.2f} of that of all")
        against(
            f"its step over that of all layers ({setting})",
            lambda own=only: step(group, own),
            lambda: step(group),
            repetitions,
        )  # type: ignore[misc]


def twin(setting: Setting, size: Size, directions: int, repetitions: int) -> None:
    """FwdLLM as released, client by client and direction by direction, against the step here; and the bytes of both."""
    from torch.func import functional_call

    from fedloom.local.passes import _Losses

    made, group = trainer(setting, size, {"kind": "central", "directions": directions, "h": 0.01})
    step(group)
    model = made.binding.model
    parameters = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    learnt = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    call = _Losses(made.task, model)

    def released() -> None:
        for member in group.members:
            batch = made.task.collate(made.table, member.steps[0])
            total = {name: torch.zeros_like(p) for name, p in parameters.items()}
            for _ in range(directions):
                v = {
                    name: torch.randn_like(p) if name in learnt else torch.zeros_like(p)
                    for name, p in parameters.items()
                }
                with torch.no_grad():
                    plus = functional_call(call, {n: p + 0.01 * v[n] for n, p in parameters.items()}, (batch,))
                    minus = functional_call(call, {n: p - 0.01 * v[n] for n, p in parameters.items()}, (batch,))
                s = (plus - minus).item() / 0.02
                for name, tangent in v.items():
                    total[name] += s * tangent

    title = f"the twin over this, {directions} direction{'s' * (directions > 1)} ({setting})"
    against(title, released, lambda: step(group), repetitions)
    dense = 4 * sum(p.numel() for p in parameters.values())
    own = 4 * made.binding.layout.n
    from fedloom.codec.wire import Seeds, encoded_size

    header = Seeds(
        layout=made.binding.layout.digest, round=1, client="client-00000", weight=1.0, samples=1, tokens=1, steps=1,
        train_loss=1.0, directions=directions,
    )  # fmt: skip
    seeds = encoded_size(header, {"derivatives": torch.zeros(directions)})
    print(
        f"  bytes of the twin's message over the trained slices': {dense / own:.0f}, over seeds': {dense / seeds:.0f}"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", nargs="+", type=int, default=[4, 8, 16, 24])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--smallest", action="store_true", help="tiny models, once: a check, not a measurement")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = TINY if options.smallest else Size()
    wide = Setting(1, 2, 64) if options.smallest else Setting(1, 8, 256)
    if options.mode:
        print(json.dumps(memory(options.mode, wide, replace(size, layers=options.depths[0]))))
        return
    depths = [2] if options.smallest else options.depths
    repetitions = 1 if options.smallest else options.repetitions
    print(machine())
    print(f"peak memory of a step ({wide}), and its ratio to inference")
    tell_memory(depths, repetitions, ["--smallest"] if options.smallest else [])
    print("time")
    suffix(Setting(1, 8, 64), replace(size, layers=8), 4, repetitions)
    batched(Setting(1, 1, 16), size, 8, repetitions)
    grouped(Setting(8, 1, 16), size, repetitions)
    print("layers")
    layers(
        Setting(1, 8, 64),
        replace(size, layers=8 if options.smallest else 32),
        2 if options.smallest else 8,
        repetitions,
    )
    print("against FwdLLM as released")
    like_distilbert = TINY if options.smallest else Size(width=768, layers=6, heads=12, inner=2048, vocabulary=1000)
    twin(Setting(1, 8, 64), like_distilbert, 1, repetitions)
    twin(Setting(8, 1, 16), like_distilbert, 4, repetitions)


if __name__ == "__main__":
    main()
