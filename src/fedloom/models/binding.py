"""The model's trainable parameters, bound to rows of a bank: to one row, or to all rows of a group at once.

Bound to K rows, the base model runs **once** over the concatenated batch of K clients, and every trainable linear map applies
row k's weights to client k's block: `[K, B*T, d] @ [K, d, r]`; so do normalisations, biases and soft prompts. No model code
changes: only the `forward` of the modules that own trainable parameters is swapped while they are bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PromptEmbedding
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fedloom.errors import ModelError
from fedloom.models.dropout import Dropouts
from fedloom.vector.bank import Bank
from fedloom.vector.layout import Layout, layer_of

__all__ = ["Binding"]

_ADAPTER = "default"


class Binding:
    """A model whose trainable parameters live in `home`, a bank of one row `[1, n]`.

    `home` is where evaluation and in-place training happen: the parameters are views of it, their gradients views of its
    gradients. `group(bank)` lends the model to K rows at once.
    """

    def __init__(self, model: nn.Module, *, base_dropout: bool = False) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.model = model
        self.layout = Layout.of(named)
        self.device = named[0][1].device
        self.home = Bank.of(torch.cat([p.detach().reshape(-1).float() for _, p in named]).unsqueeze(0))
        values, grads = self.layout.views(self.home.values[0]), self.layout.views(self.home.grads[0])
        for name, parameter in named:
            parameter.data, parameter.grad = values[name], grads[name]
        self.dropouts = Dropouts(model, base_dropout)
        self._names = {id(p): name for name, p in named}
        self._sites, self.ungroupable = self._find_sites()
        self._pristine: dict[str, Tensor] = {}
        self._folded: dict[str, tuple[Tensor, Tensor]] = {}
        for site in self._sites:  # a float32 head on a bfloat16 model
            if isinstance(site, nn.Linear) and site.weight.requires_grad:
                site.register_forward_pre_hook(_as_weight)

    def fold(self, products: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Make each map named its weight as loaded plus s U V, U `[d_out, R]`, V `[R, d_in]`, s = alpha / r; all others as loaded.

        A copy of the weight as loaded is kept for those maps only. Nothing is done when they are the ones folded in already.
        Raises ModelError when a map's weight is also used elsewhere in the model.
        """
        new = {name: product for name, product in products.items() if product[0].shape[1]}
        for name in self._folded.keys() | new.keys():
            if name in new and name in self._folded and all(map(_same, new[name], self._folded[name])):
                continue
            site: Any = self.model.get_submodule(name)
            weight = site.base_layer.weight
            if not weight.is_floating_point():
                what = f"nothing can be added to the weight of {name}, which is quantised"
                raise ModelError(what, where="model.quantization", fix="take it out, or choose another algorithm")
            if name not in self._pristine:
                self._check_untied(name, weight)
                self._pristine[name] = weight.detach().clone()
            if name not in new:
                weight.data.copy_(self._pristine.pop(name))
                continue
            u, v = (factor.to(self.device) for factor in new[name])
            added = site.scaling[_ADAPTER] * (u.double() @ v.double())
            weight.data.copy_(self._pristine[name].double() + (added.T if site.fan_in_fan_out else added))
        self._folded = new

    @property
    def folded(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """What `fold` has made part of the weights, U and V by the name of the map."""
        return self._folded

    def _check_untied(self, name: str, weight: Tensor) -> None:
        uses = [n for n, p in self.model.named_parameters(remove_duplicate=False) if p is weight]
        if len(uses) > 1:
            what = f"nothing can be added to the weight of {name}, for {uses[0]} is the same weight as {uses[1]}"
            raise ModelError(
                what, where="adapter.targets", fix="take it out of the targets, or choose another algorithm"
            )

    def load(self, w: Tensor) -> None:
        """Make `w`, `[n]`, the parameters of the model."""
        self.home.values[0].copy_(w)

    def _still(self, only: Tensor | None) -> set[str]:
        """The slices of which no entry is in `only`, `[n]`: autograd need not reach them. None where all would stand still."""
        if only is None or not bool(only.any()):
            return set()
        return {s.name for s in self.layout.slices if not bool(only[s.offset : s.offset + s.size].any())}

    def reach(self, only: Tensor | None) -> float:
        """The share of the model's layers that the way back passes through, down to the lowest slice with an entry in `only`."""
        still = self._still(only)
        if not still:
            return 1.0
        moved = [s for s in self.layout.slices if s.name not in still]
        depth = 1 + max(
            (layer for name, _ in self.model.named_parameters() if (layer := layer_of(name)) is not None), default=0
        )
        first = next((i for i, s in enumerate(self.layout.slices) if s.layer is not None), len(self.layout.slices))
        if any(s in self.layout.slices[:first] for s in moved):
            return 1.0
        return (depth - min((s.layer for s in moved if s.layer is not None), default=depth)) / depth

    @contextmanager
    def at_home(self, only: Tensor | None = None) -> Iterator[None]:
        """Train the one row at home; no graph is built for slices not in `only`, `[n]`, nor below the lowest one that is."""
        still = self._still(only)
        named = [p for p in self.model.parameters() if self._names.get(id(p)) in still] if still else []
        for parameter in named:
            parameter.requires_grad_(False)
        plain = [site for site in self._sites if _is_plain(site) and "forward" not in vars(site)]
        for site in plain:
            site.forward = partial(_one_lora, site)
        try:
            yield
        finally:
            for site in plain:
                del site.forward
            for parameter in named:
                parameter.requires_grad_(True)

    @contextmanager
    def group(
        self, rows: Bank | Tensor, tangents: Tensor | None = None, *, only: Tensor | None = None
    ) -> Iterator[None]:
        """Lend the model to the K rows of a bank, or to rows `[K, n]`: its batches are K equal blocks, a block a row.

        Gradients add up in the bank's; rows alone take none. No graph is built for slices that are not in `only`, `[n]`. Within
        `forward_ad.dual_level`, tangents `[K, n]` make the rows dual numbers. Raises ModelError when a trainable module cannot be
        grouped.
        """
        if self.ungroupable:
            raise ModelError(
                f"this model cannot be trained grouped: {self.ungroupable}",
                where="local.grouping",
                fix="use `in_place`",
            )
        if isinstance(rows, Bank):
            leaves, grads, still = {}, self.layout.views(rows.grads), self._still(only)
            for name, view in self.layout.views(rows.values).items():
                leaves[name] = view.detach()
                if name not in still:
                    leaves[name].requires_grad_()
                    leaves[name].grad = grads[name]
        else:
            leaves = self.layout.views(rows) if tangents is None else self.duals(rows, tangents)
        before = [vars(site).get("forward") for site in self._sites]  # set where the model is lent already
        for site in self._sites:
            site.forward = self._grouped_forward(site, leaves)
        try:
            yield
        finally:
            for site, forward in zip(self._sites, before, strict=True):
                del site.forward
                if forward is not None:
                    site.forward = forward

    def duals(self, rows: Tensor, tangents: Tensor) -> dict[str, Tensor]:
        """Rows `[K, n]`, or one `[n]`, as views by name, each a dual number with its part of the tangents."""
        parts = self.layout.views(tangents)
        return {name: _dual(view, parts[name]) for name, view in self.layout.views(rows).items()}

    def _grouped_forward(self, site: nn.Module, leaves: dict[str, Tensor]) -> Callable[..., Tensor]:
        def leaf(parameter: Tensor | None) -> Tensor | None:
            """The rows of a parameter that is learnt; None for another."""
            name = self._names.get(id(parameter))
            return None if name is None else leaves[name]

        if isinstance(site, lora.LoraLayer):
            a, b = (leaf(factor[_ADAPTER].weight) for factor in (site.lora_A, site.lora_B))
            assert a is not None and b is not None
            return partial(_grouped_lora, site, a, b, site.scaling[_ADAPTER])
        weight = leaf(site.weight)  # type: ignore[arg-type]
        if isinstance(site, nn.Embedding):
            assert weight is not None
            return lambda _: weight  # a soft prompt: all of it, whatever is asked
        bias = leaf(site.bias)  # type: ignore[arg-type]
        if isinstance(site, nn.LayerNorm):
            return partial(_grouped_norm, site, weight, bias)
        assert isinstance(site, nn.Linear)
        if weight is not None:
            return partial(_grouped_linear, weight, bias)
        assert bias is not None
        return partial(_grouped_bias, site.weight, bias)

    def _find_sites(self) -> tuple[list[nn.Module], str | None]:
        """The modules that own trainable parameters, and why they cannot be grouped, if they cannot."""
        sites: list[nn.Module] = []
        inside: set[int] = set()  # the maps within a LoRA layer are that layer's business
        prompts = {id(m.embedding) for m in self.model.modules() if isinstance(m, PromptEmbedding)}
        reason: str | None = None
        for name, module in self.model.named_modules():
            if id(module) in inside:
                continue
            if isinstance(module, lora.LoraLayer):
                inside |= {id(m) for m in module.modules() if m is not module}
                sites.append(module)
                reason = reason if _is_plain(module) else reason or f"{name} is no plain LoRA of a linear map"
            elif any(p.requires_grad for p in module.parameters(recurse=False)):
                sites.append(module)
                able = id(module) in prompts or _has_blocks(module)
                reason = reason if able else reason or f"{name} is a {type(module).__name__}"
        return sites, reason


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


def _is_plain(module: Any) -> bool:
    """Whether a module is W x + (alpha / r) B A x and nothing else."""
    linear = type(module) is lora.Linear or type(module).__module__ == "peft.tuners.lora.bnb"  # of a quantised weight
    return linear and not module.lora_variant and not module.lora_bias.get(_ADAPTER)


def _has_blocks(module: nn.Module) -> bool:
    """Whether a module can apply learnt weights, or a learnt bias alone, to each block by itself."""
    learnt = {name for name, p in module.named_parameters(recurse=False) if p.requires_grad}
    if learnt == {name for name, _ in module.named_parameters(recurse=False)}:
        return isinstance(module, nn.Linear) or _is_norm(module)
    # alone, the bias is added to x W^T, with W as it is stored: in no quantised map
    return learnt == {"bias"} and (type(module) is nn.Linear or _is_norm(module))


def _is_norm(module: nn.Module) -> bool:
    return type(module) is nn.LayerNorm and len(module.normalized_shape) == 1


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or torch.equal(a, b)


def _as_weight(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].to(module.weight.dtype), *inputs[1:])  # type: ignore[arg-type]


# The maps below transpose and reshape the leaves anew at every call: a view made earlier, of memory the optimizer has written to
# since, would make autograd rebuild it through a dense gradient of the whole bank.


def _grouped_lora(site: lora.Linear, a: Tensor, b: Tensor, scaling: float, x: Tensor) -> Tensor:
    """W x + (alpha / r) B_k A_k x for block k of the batch; `a` is `[K, r, in]`, `b` is `[K, out, r]`."""
    base: Tensor = site.base_layer(x)
    z = torch.bmm(_blocks(site.lora_dropout[_ADAPTER](x.to(a.dtype)), len(a)), a.transpose(1, 2))
    if base.dtype == b.dtype:
        return torch.baddbmm(_blocks(base, len(a)), z, b.transpose(1, 2), alpha=scaling).view(base.shape)
    return (base + (torch.bmm(z, b.transpose(1, 2)) * scaling).view(base.shape)).to(base.dtype)


def _one_lora(site: lora.Linear, x: Tensor) -> Tensor:
    """W x + (alpha / r) B A x, in as few operations as there can be: peft's own takes twice as many, which small batches feel."""
    a, b = site.lora_A[_ADAPTER].weight, site.lora_B[_ADAPTER].weight
    base: Tensor = site.base_layer(x)
    z = site.lora_dropout[_ADAPTER](x.to(a.dtype)).reshape(-1, x.shape[-1]) @ a.T
    if base.dtype == b.dtype:
        flat: Tensor = torch.addmm(base.view(-1, base.shape[-1]), z, b.T, alpha=site.scaling[_ADAPTER])
        return flat.view_as(base)
    added: Tensor = (z @ b.T * site.scaling[_ADAPTER]).view(base.shape)
    return (base + added).to(base.dtype)


def _grouped_linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x W_k + b_k for block k of the batch; `weight` is `[K, out, in]`, `bias` is `[K, out]`."""
    blocks, maps = _blocks(x.to(weight.dtype), len(weight)), weight.transpose(1, 2)
    y = torch.bmm(blocks, maps) if bias is None else torch.baddbmm(bias.unsqueeze(1), blocks, maps)
    return y.view(*x.shape[:-1], y.shape[-1])


def _grouped_bias(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """x W + b_k for block k of the batch; `weight` is `[out, in]`, `bias` is `[K, out]`."""
    y = F.linear(x.to(weight.dtype), weight)
    return (_blocks(y, len(bias)) + bias.unsqueeze(1)).view(y.shape)


def _grouped_norm(site: nn.LayerNorm, weight: Tensor | None, bias: Tensor | None, x: Tensor) -> Tensor:
    """w_k (x - mean) / deviation + b_k for block k of the batch; `weight` and `bias` are `[K, d]`, or None where not learnt."""
    y = F.layer_norm(x, site.normalized_shape, site.weight if weight is None else None, None, site.eps)
    if weight is not None:
        y = (_blocks(y, len(weight)) * weight.unsqueeze(1)).view(x.shape)
    if bias is not None:
        y = (_blocks(y, len(bias)) + bias.unsqueeze(1)).view(x.shape)
    return y.to(x.dtype)


def _blocks(x: Tensor, k: int) -> Tensor:
    """`[K*B, ..., d]` as `[K, B*..., d]`."""
    return x.reshape(k, -1, x.shape[-1])
