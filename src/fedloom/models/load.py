"""Base models and tokenizers: from a hub, a folder, a packaged sample or the user's own builder."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from fedloom.config.reference import is_reference, line_of, load_attribute
from fedloom.config.schema import Model
from fedloom.data.fetch import fetch
from fedloom.errors import ModelError
from fedloom.models.quantized import need_bitsandbytes, quantization, read_weights_back
from fedloom.vector.streams import stream_seed

__all__ = ["fingerprint", "load_model", "load_tokenizer", "pretrained_path"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def pretrained_path(config: Model, base: Path) -> str:
    """What `from_pretrained` is given: a folder where there is one, else the hub name."""
    if config.path.startswith("sample:"):
        return str(fetch(config.path.removeprefix("sample:")))
    folder = base / Path(config.path).expanduser()
    if folder.is_dir():
        return str(folder)
    if config.path.startswith((".", "/", "~")):
        raise ModelError(f"there is no folder {config.path!r}", where="model.path", fix=f"it is looked for in {base}")
    return config.path


def load_tokenizer(config: Model, base: Path, labels: Sequence[str]) -> Any:
    """The model's fast tokenizer, with a padding token and padding on the right; a builder of one's own is given the labels.

    Raises ModelError when the hub cannot be reached or the folder holds no tokenizer.
    """
    if is_reference(config.path):
        tokenizer = _build(config, base, labels)[1]
    else:
        path = pretrained_path(config, base)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, revision=config.revision or "main")
        except Exception as error:  # what a damaged folder makes the library raise is of many kinds
            raise _unreadable(config, "tokenizer", error) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ModelError("the tokenizer has no padding, end or unknown token", where="model.path")
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(
    config: Model,
    base: Path,
    *,
    auto_class: str,
    labels: Sequence[str],
    pad_token_id: int,
    seed: int,
    device: torch.device | None = None,
    whole: Sequence[str] = (),
) -> nn.Module:
    """The frozen base model in evaluation mode; new heads are drawn from the stream (seed, "init-model").

    Weights that are quantised are so on `device`, the CPU when left out, and stay there; the modules named in `whole`, which will
    be learnt whole, are not quantised. Raises ModelError when the model cannot be found or read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "init-model"))
        if is_reference(config.path):
            model = _build(config, base, labels)[0].to(_DTYPES[config.dtype])
        else:
            model = _pretrained(config, base, auto_class, labels, device or torch.device("cpu"), whole)
    read_weights_back(model)
    if isinstance(model, transformers.PreTrainedModel):
        model.config.pad_token_id = pad_token_id
        model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
    if config.gradient_checkpointing:
        _enable_checkpointing(model)
    return model


def _pretrained(
    config: Model, base: Path, auto_class: str, labels: Sequence[str], device: torch.device, whole: Sequence[str]
) -> nn.Module:
    options: dict[str, Any] = {"dtype": _DTYPES[config.dtype]}
    if labels:
        names = dict(enumerate(labels))
        options |= {"num_labels": len(labels), "id2label": names, "label2id": {v: k for k, v in names.items()}}
    path = pretrained_path(config, base)
    if config.quantization is not None:
        need_bitsandbytes()
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # the new classification head is meant, not a mistake to warn of
    transformers.logging.disable_progress_bar()
    try:
        auto, revision = getattr(transformers, auto_class), config.revision or "main"
        if config.quantization is not None:
            with torch.device("meta"):
                empty = auto.from_config(transformers.AutoConfig.from_pretrained(path, revision=revision))
            options["quantization_config"] = quantization(config.quantization, options["dtype"], empty, whole)
            options["device_map"] = {"": device}
        model = auto.from_pretrained(path, revision=revision, **options)
        assert isinstance(model, nn.Module)
        return model
    except Exception as error:  # as above
        raise _unreadable(config, "model", error) from error
    finally:
        transformers.logging.set_verbosity(level)


def _unreadable(config: Model, part: str, error: Exception) -> ModelError:
    return ModelError(
        f"the {part} {config.path!r} cannot be loaded",
        where="model.path",
        why=f"{type(error).__name__}: {' '.join(str(error).split())[:400]}",
        fix="give a hub name (with a network), a local folder, or a packaged sample; see `fedloom list models`",
    )


def _build(config: Model, base: Path, labels: Sequence[str]) -> tuple[nn.Module, Any]:
    builder = load_attribute(config.path, base)
    try:
        built = builder(list(labels)) if callable(builder) else None
    except Exception as error:
        place = line_of(error, config.path.partition(":")[0])
        raise ModelError(
            f"{config.path!r} failed: {type(error).__name__}: {error}{place}", where="model.path"
        ) from error
    kinds = (nn.Module, transformers.PreTrainedTokenizerBase)
    if not (isinstance(built, tuple) and len(built) == 2 and all(map(isinstance, built, kinds))):
        raise ModelError(
            f"{config.path!r} did not return (model, tokenizer)",
            where="model.path",
            fix="define `def build(labels: list[str]) -> tuple[nn.Module, PreTrainedTokenizerFast]`",
        )
    return built


def _enable_checkpointing(model: nn.Module) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            "this model has no gradient checkpointing", where="model.gradient_checkpointing", fix="remove the key"
        )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # renamed in transformers 5.2x; the old name is there in all of 5
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    # Layers recompute only in training mode; the rest stays in evaluation mode, so no other behaviour changes.
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def fingerprint(model: nn.Module, heads: Collection[str] = ()) -> str:
    """A digest of a model's weights, heads that start anew left out: names, shapes, dtypes and 64 evenly spaced elements of each.

    Enough to tell one checkpoint from another in milliseconds; it is no defence against a forger.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        if not set(heads).isdisjoint(name.split(".")):
            continue
        flat = parameter.detach().reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, min(64, flat.numel()), dtype=torch.float64).long()
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(flat[picks.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
