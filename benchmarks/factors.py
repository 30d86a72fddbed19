"""FlexLoRA's truncation: singular values of the mean product from its thin factors, against a dense SVD of the d x d mean.

Both begin with the clients' A_k and B_k and end with a pair of rank r; the products of the two pairs must agree.
"""

from __future__ import annotations

import argparse

import torch
from common import cpu_seconds, machine, ratio, rotate
from torch import Tensor

from fedloom.vector.lora import Product, stack, svd

TOLERANCE = 1e-4


def thin(a: Tensor, b: Tensor, weights: Tensor) -> Product:
    """As the algorithm does it, in float64."""
    u, v = svd(stack(a, b, weights), rank=a.shape[1])
    return u.float(), v.float()


def dense(a: Tensor, b: Tensor, weights: Tensor) -> Product:
    """The mean product multiplied out and decomposed, in float32."""
    mean = torch.einsum("k,kor,kri->oi", weights / weights.sum(), b, a)
    left, values, right = torch.linalg.svd(mean, full_matrices=False)
    r = a.shape[1]
    return left[:, :r] * values[:r], right[:r]


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=2048, help="width of the map (default %(default)s)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the factors (default %(default)s)")
    parser.add_argument("--clients", type=int, default=20, help="clients (default %(default)s)")
    parser.add_argument("--repetitions", type=int, default=3, help="turns (default %(default)s)")
    parser.add_argument("--smallest", action="store_true", help="the smallest setting, to see that it runs")
    options = parser.parse_args()
    d, r, k = (128, 2, 4) if options.smallest else (options.d, options.rank, options.clients)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1, r)  # singular values apart, so that both find the same ones
    common_a, common_b = torch.randn(r, d, generator=generator), torch.randn(d, r, generator=generator) * scale
    a = common_a + 0.3 * torch.randn(k, r, d, generator=generator)
    b = common_b + 0.3 * torch.randn(k, d, r, generator=generator) * scale
    weights = torch.rand(k, generator=generator) + 0.5

    ours, oracle = thin(a, b, weights), dense(a, b, weights)
    apart = float((ours[0] @ ours[1] - oracle[0] @ oracle[1]).norm() / (oracle[0] @ oracle[1]).norm())
    if apart > TOLERANCE:
        raise SystemExit(f"the two differ by {apart:.1e}")
    seconds = rotate(
        {
            "thin": lambda: cpu_seconds(lambda: thin(a, b, weights)),
            "dense": lambda: cpu_seconds(lambda: dense(a, b, weights)),
        },
        options.repetitions,
    )
    print(machine())
    print(f"d = {d}, r = {r}, {k} clients; the products differ by {apart:.0e}")
    print(f"  dense SVD of the d x d mean over the thin one  {ratio(seconds['dense'], seconds['thin'])}")


if __name__ == "__main__":
    main()
