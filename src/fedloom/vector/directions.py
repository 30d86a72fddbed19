"""Random directions to differentiate along, made again anywhere from a key of eight bytes, and ways to guide them.

A forward gradient is g_hat = sum_k weight_k * (directional derivative along v_k) * v_k, with E[v v^T] = I so that it is
unbiased. A direction is a function of its key and of the *name* of each slice and the offset in it: any part of it, in
chunks of any size, in any order of slices, on any device, has the same bits.
    gaussian     independent normals of variance one (`philox` says how close)
    rademacher   independent signs; a bit an entry, so the cheapest
    sphere       a gaussian scaled to norm sqrt(d), d the number of chosen entries
    orthogonal   the gaussians of one call made orthogonal to each other, in order, each of norm sqrt(d); mixing them
                 rounds, so these agree across devices to float32 rounding and not to the bit
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

import torch
from torch import Tensor

from fedloom.errors import FedloomError
from fedloom.vector.layout import Layout
from fedloom.vector.philox import (
    LONGEST,
    VALUES_PER_BLOCK,
    Only,
    Part,
    chosen_values,
    chunks,
    generate,
    parts_of,
    values,
)
from fedloom.vector.streams import stream_seed

__all__ = [
    "DirectionStream",
    "Guidance",
    "Kind",
    "Only",
    "accumulate",
    "amplification",
    "directions",
    "draw",
    "weights",
]

Kind = Literal["gaussian", "rademacher", "sphere", "orthogonal"]
Guidance = Literal["none", "top_cosine", "complement"]


@dataclass(frozen=True)
class DirectionStream:
    """The endless list of keys of one client's step; a cohort that shares its directions shares the name in `client`."""

    seed: int
    purpose: str
    round: int
    client: int | str
    step: int

    def keys(self, count: int, start: int = 0) -> list[int]:
        """The keys of directions start, ..., start + count - 1: `blake2b(seed, purpose, round, client, step, direction)`."""
        place = (self.seed, self.purpose, self.round, self.client, self.step)
        return [stream_seed(*place, direction) for direction in range(start, start + count)]


def _fill(out: Tensor, parts: Sequence[Part], keys: Sequence[int], kind: Kind, chunk: int | None = None) -> None:
    """Write the chosen entries of each direction into the rows of `out [K, n]`, which are zero elsewhere."""
    for blocks, rows, numbers in generate(parts, keys, kind, out.device, chunk):
        for source, target in blocks.moves:
            out[rows, target] = numbers[:, source]
    if kind == "sphere":
        squares = [part.double().square().sum(1).tolist() for part in torch.split(out, LONGEST, dim=1)]
        out.mul_(_radii(list(zip(*squares, strict=True)), parts).to(out.device))


def _radii(squares: Sequence[Sequence[float]], parts: Sequence[Part]) -> Tensor:
    """What brings each gaussian to norm sqrt(d), float32 `[K, 1]`, from exact partial sums of its squares."""
    d = sum(part.chosen for part in parts)
    return torch.tensor([[math.sqrt(d / math.fsum(row))] for row in squares], dtype=torch.float32)


def _check(kind: str, keys: Sequence[int], parts: Sequence[Part], spare: int = 0) -> None:
    if kind not in get_args(Kind):
        raise FedloomError(f"there are no '{kind}' directions", fix=f"choose one of {', '.join(get_args(Kind))}")
    if not keys:
        raise FedloomError("no direction is asked for", fix="draw at least one")
    d = sum(part.chosen for part in parts) - spare
    if kind == "orthogonal" and len(keys) > d:
        raise FedloomError(
            f"{len(keys)} directions cannot be orthogonal to each other in {d} dimensions",
            fix=f"draw at most {d}, learn more parameters, or use gaussian directions",
        )


# Orthogonal directions


def _triangle(gram: Tensor, d: int) -> Tensor:
    """M = sqrt(d) L^-1 with Z Z^T = L L^T, so that M Z are the rows of Z made orthogonal in order, of norm sqrt(d)."""
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), eye, upper=False)
    return math.sqrt(d) * inverse


def _gram(rows: Tensor, columns: int = 1 << 16) -> Tensor:
    wide = [part.double() for part in torch.split(rows, columns, dim=1)]
    return torch.stack([part @ part.T for part in wide]).sum(0)


def _orthogonalise(rows: Tensor, d: int, columns: int = 1 << 16) -> None:
    """Make rows `[K, n]` of rank K orthogonal, of norm sqrt(d), in place and in float64."""
    mix = _triangle(_gram(rows, columns), d)
    for part in torch.split(rows, columns, dim=1):
        part.copy_(mix @ part.double())


def _orthogonal_scalars(
    parts: Sequence[Part], keys: Sequence[int], scalars: Tensor, device: torch.device, chunk: int | None
) -> Tensor:
    """The scalars s' = M^T s with which gaussians sum to what orthogonal directions sum to with s."""
    d, gram = sum(part.chosen for part in parts), torch.zeros(len(keys), len(keys), dtype=torch.float64, device=device)
    width = VALUES_PER_BLOCK["gaussian"]
    most = max(1, min(chunk or 1 << 16, (1 << 22) // len(keys)) // width)
    tensor = torch.tensor(keys, device=device)
    for blocks in chunks(parts, width, most, device):
        wide = chosen_values(blocks, values(tensor, blocks.blocks, blocks.slices, "gaussian")).double()
        gram += wide @ wide.T
    return _triangle(gram, d).T @ scalars.to(device, torch.float64)


# Directions, and their sums


def directions(
    layout: Layout,
    keys: Sequence[int],
    kind: Kind = "gaussian",
    *,
    only: Only | None = None,
    device: torch.device | str = "cpu",
    chunk: int | None = None,
) -> Tensor:
    """Float32 `[K, n]`, a row a key. `chunk` bounds the working memory (values of a direction at once), not the result."""
    device, parts = torch.device(device), parts_of(layout, only)
    _check(kind, keys, parts)
    out = torch.zeros(len(keys), layout.n, device=device)
    _fill(out, parts, keys, kind, chunk)
    if kind == "orthogonal":
        _orthogonalise(out, sum(part.chosen for part in parts))
    return out


def accumulate(
    layout: Layout,
    keys: Sequence[int],
    scalars: Tensor,
    kind: Kind,
    out: Tensor,
    *,
    only: Only | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Add sum_k s_k v_k to `out [n]` in place, k in order, remaking each direction chunk by chunk; returns `out`.

    Every product and every sum is rounded by itself, so with gaussian, rademacher and sphere the result has the same bits
    for any chunk and device.
    """
    parts = parts_of(layout, only)
    _check(kind, keys, parts)
    if scalars.shape != (len(keys),) or out.shape != (layout.n,):
        raise FedloomError(
            f"{len(keys)} keys, scalars {tuple(scalars.shape)} and a sum {tuple(out.shape)} for a layout of {layout.n} do not fit",
            why="each direction has one scalar, and their sum is one vector",
            fix="the message belongs to another layout or was cut short",
        )
    radii = None
    if kind == "sphere":
        squares: list[list[float]] = [[] for _ in keys]
        for blocks, rows, numbers in generate(parts, keys, kind, out.device, chunk):
            for row, square in zip(
                squares[rows], chosen_values(blocks, numbers).double().square().sum(1).tolist(), strict=True
            ):
                row.append(square)
        radii = _radii(squares, parts).to(out.device)
    if kind == "orthogonal":  # float64: where K is near d, the scalars are large and cancel
        factors = _orthogonal_scalars(parts, keys, scalars, out.device, chunk)
    else:
        factors = scalars.to(out.device, out.dtype)
    for blocks, rows, numbers in generate(parts, keys, kind, out.device, chunk):
        scaled = (numbers if radii is None else numbers.mul_(radii[rows])) * factors[rows, None]
        total = torch.zeros(numbers.shape[1], dtype=scaled.dtype, device=out.device)
        for source, target in blocks.moves:
            total[source] = out[target].to(total.dtype)
        for row in scaled:
            total += row
        for source, target in blocks.moves:
            out[target] = total[source].to(out.dtype)
    return out


# Guidance by the previous update


def amplification(candidates: int = 10) -> float:
    """kappa = E[z^2 | z among the top 1/candidates of normals] = 1 + candidates * a * phi(a), 3.249 for ten."""
    a = NormalDist().inv_cdf(1 - 1 / candidates)
    return 1 + candidates * a * NormalDist().pdf(a)


def weights(count: int, guidance: Guidance = "none", *, guided: bool = True) -> Tensor:
    """Float32 `[N]`, the weights of a step's N directions, all of them, in g_hat = sum_k weight_k * jvp_k * v_k.

    1/N each; for `complement` 1 for the reference's own direction and 1/(N - 1) for the others. `guided` says whether the
    step had a reference: without one every guidance is plain sampling.
    """
    if count < 1:
        raise FedloomError("no direction is asked for", fix="draw at least one")
    if guidance != "complement" or not guided:
        return torch.full((count,), 1 / count)
    if count < 2:
        raise FedloomError(
            "one direction cannot be both the previous update's and one of its complement",
            fix="draw at least 2 directions a step, or use `guidance: none`",
        )
    return torch.tensor([1.0, *[1 / (count - 1)] * (count - 1)])


def draw(
    layout: Layout,
    stream: DirectionStream,
    count: int,
    kind: Kind = "gaussian",
    *,
    start: int = 0,
    guidance: Guidance = "none",
    reference: Tensor | None = None,
    candidates: int = 10,
    only: Only | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Directions start, ..., start + count - 1 of a step, `[N, n]`, and their weights `[N]` when these end it.

    A step that goes on drawing calls again with a larger `start`, and takes `weights` of the final number for all;
    orthogonal directions are so only within one call.
    p, the reference `[n]`, is the previous update; where it is missing or zero, sampling is plain, with the same draws.

    none         v_k as keyed; g_hat is unbiased.
    top_cosine   FwdLLM (Xu et al. 2024, arXiv 2308.13894): for each slice t by itself draw candidates * N, rank them by
                 signed cosine with p_t, keep the best N in descending order; direction k is the k-th best of every slice.
                 Biased: with u_t = p_t / ||p_t|| and kappa = `amplification()`, one slice has
                     E[g_hat] = g + (kappa - 1) (g . u) u,
                 and as equal ranks meet across slices, several have, for many candidates,
                     E[g_hat]_t = g_t - (g_t . u_t) u_t + kappa (sum_s g_s . u_s) u_t.
    complement   v_1 = u = p / ||p||, all others z - (z . u) u with z as keyed; weights 1 and 1/(N - 1). As
                 u u^T + (I - u u^T) = I, g_hat is unbiased, and exact where g is along p.
    """
    if guidance not in get_args(Guidance):
        raise FedloomError(f"there is no guidance '{guidance}'", fix=f"choose one of {', '.join(get_args(Guidance))}")
    parts, device = parts_of(layout, only), torch.device(device)
    p = None if reference is None or guidance == "none" else _reference(layout, parts, reference.to(device))
    share = weights(start + count, guidance, guided=p is not None)[start:].to(device)
    if p is None:
        return directions(layout, stream.keys(count, start), kind, only=only, device=device), share
    if guidance == "top_cosine":
        keys = stream.keys(candidates * count, candidates * start)
        return _top_cosine(layout, parts, keys, kind, p, count), share
    return _complement(layout, parts, stream, count, kind, start, p), share


def _reference(layout: Layout, parts: Sequence[Part], reference: Tensor) -> Tensor | None:
    """The chosen entries of the reference in float64, the others zero; None where nothing is left."""
    if reference.shape != (layout.n,):
        raise FedloomError(f"a reference {tuple(reference.shape)} does not fit a layout of length {layout.n}")
    p = torch.zeros(layout.n, dtype=torch.float64, device=reference.device)
    for part in parts:
        whole = slice(part.slice.offset, part.slice.offset + part.slice.size)
        at = whole if part.index is None else (part.slice.offset + part.index).to(reference.device)
        p[at] = reference[at].double()
    return p if bool(p.any()) else None


def _top_cosine(
    layout: Layout, parts: Sequence[Part], keys: Sequence[int], kind: Kind, p: Tensor, count: int
) -> Tensor:
    """The best candidates of every slice, `[count, n]`; ranked chunk by chunk, then made again: the pool is never held."""
    if kind == "orthogonal":
        raise FedloomError(
            "orthogonal directions cannot be chosen by cosine",
            why="candidates are ranked slice by slice, and what is put together from several is no longer orthogonal",
            fix="use gaussian, rademacher or sphere, or `guidance: complement`",
        )
    _check(kind, keys, parts)
    out = torch.zeros(count, layout.n, device=p.device)
    for part in parts:  # a cosine does not change with the length, so a sphere's candidates are gaussians here
        dots, squares = (torch.zeros(len(keys), dtype=torch.float64, device=p.device) for _ in range(2))
        for blocks, rows, numbers in generate([part], keys, kind, p.device, None):
            (source, target), *_ = blocks.moves
            chosen = numbers[:, source].double()
            dots[rows] += chosen @ p[target]
            squares[rows] += chosen.square().sum(1)
        order = torch.sort(dots / squares.sqrt(), descending=True, stable=True).indices[:count].tolist()
        _fill(out, [part], [keys[c] for c in order], "rademacher" if kind == "rademacher" else "gaussian")
    if kind == "sphere":
        d = sum(part.chosen for part in parts)
        out *= (math.sqrt(d) / torch.linalg.vector_norm(out, dim=1, keepdim=True, dtype=torch.float64)).float()
    return out


def _complement(
    layout: Layout, parts: Sequence[Part], stream: DirectionStream, count: int, kind: Kind, start: int, p: Tensor
) -> Tensor:
    """The reference's direction, if this draw has it, and directions orthogonal to it."""
    u = p / torch.linalg.vector_norm(p)
    lead = 1 if start == 0 else 0
    keys = stream.keys(count - lead, start + lead)
    _check(kind, keys, parts, spare=1)
    z = torch.zeros(len(keys), layout.n, device=p.device)
    _fill(z, parts, keys, kind)
    for row in z:
        wide = row.double()
        row.copy_(wide - (wide @ u) * u)
    if kind == "orthogonal":
        _orthogonalise(z, sum(part.chosen for part in parts) - 1)
    return torch.cat([u.float()[None], z]) if lead else z
