"""What is learnt: a LoRA adapter through peft, or every parameter; and the assertion that it is just that."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any

import peft
import torch
from torch import nn
from transformers import PreTrainedModel

from fedloom.config.schema import Adapter, LoraAdapter
from fedloom.errors import ModelError, nearest
from fedloom.vector.streams import stream_seed

__all__ = ["attach"]

# peft asks transformers by a name that it has since renamed; users cannot mend that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def attach(model: nn.Module, config: Adapter, *, peft_task: str | None, heads: Iterable[str], seed: int) -> nn.Module:
    """The model with its adapter; exactly the adapter's parameters (and the saved modules) require gradients.

    `heads` are the modules the task always learns whole. Initial values come from the stream (seed, "init-adapter").
    Raises ModelError when a target matches nothing or when other parameters than expected would be learnt.
    """
    if not isinstance(config, LoraAdapter):
        return model.requires_grad_(True)
    saved = list(dict.fromkeys([*config.modules_to_save, *(h for h in heads if _matches(model, h))]))
    for name in config.modules_to_save:
        if not _matches(model, name):
            raise _no_match(model, name, "adapter.modules_to_save")
    targets = config.targets
    if isinstance(targets, list):
        for name in targets:
            if not _matches(model, name):
                raise _no_match(model, name, "adapter.targets")
    elif targets != "all-linear" and not any(re.fullmatch(targets, name) for name, _ in model.named_modules()):
        raise _no_match(model, targets, "adapter.targets")
    lora = peft.LoraConfig(
        task_type=peft_task
        if isinstance(model, PreTrainedModel)
        else None,  # peft asks those for more than a model of one's own has
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=saved or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init-adapter"))
        try:
            adapted = peft.get_peft_model(model, lora)
        except ValueError as error:
            raise ModelError(str(error), where="adapter.targets", fix="name the modules as a list") from error
    adapted.eval()
    for module in adapted.modules():  # peft switches saved copies on; layers that recompute stay in training mode
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
    _assert_manifest(adapted, saved)
    return adapted  # type: ignore[no-any-return]


def _matches(model: nn.Module, name: str) -> bool:
    return any(full == name or full.endswith(f".{name}") for full, _ in model.named_modules())


def _no_match(model: nn.Module, name: str, key: str) -> ModelError:
    linear = sorted({full.rsplit(".", 1)[-1] for full, m in model.named_modules() if isinstance(m, nn.Linear)})
    return ModelError(f"no module of the model is named {name!r}", where=key, fix=nearest(name, linear))


def _assert_manifest(model: Any, saved: list[str]) -> None:
    """What requires gradients must be A and B of every targeted module, and the saved copies: nothing more, nothing less."""
    expected: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            part = {f"{name}.{p}" for p, _ in module.named_parameters() if "lora_" in p}
            expected |= part
        elif isinstance(module, peft.utils.ModulesToSaveWrapper):
            expected |= {f"{name}.modules_to_save.{p}" for p, _ in module.modules_to_save.named_parameters()}
    actual = {name for name, p in model.named_parameters() if p.requires_grad}
    if actual != expected:
        odd = sorted(actual ^ expected)
        raise ModelError(
            f"{len(odd)} parameters are not as the adapter says: {', '.join(odd[:3])} ...",
            where="adapter",
            why="the model freezes or frees parameters by itself",
            fix="choose other targets",
        )
