"""Which rows a client trains on, step by step, in a round."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedloom.config.schema import Local
from fedloom.tasks.base import Rows
from fedloom.vector.streams import stream

__all__ = ["plan_steps", "samples_of", "steps_of"]

_WINDOW = 8  # steps whose rows are sorted by length together: batches of like length, still drawn at random


def steps_of(rows: int, local: Local, scale: int = 1) -> int:
    """The optimizer steps of a client with this many rows; `scale` multiplies `local.steps` (for pooled clients)."""
    if local.steps is not None:
        return local.steps * scale
    assert local.epochs is not None
    return local.epochs * -(-rows // _chunk(rows, local))


def samples_of(sizes: NDArray[np.int64], local: Local, scale: int = 1) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`[N]`, `[N]`: the steps of clients with so many rows, and the rows that these go over, one as often as it is taken."""
    chunk = np.minimum(sizes, local.batch_size * local.accumulate)
    if local.steps is not None:
        steps = np.full_like(sizes, local.steps * scale)
        return steps, steps * chunk
    assert local.epochs is not None
    return local.epochs * -(-sizes // chunk), local.epochs * sizes


def _chunk(rows: int, local: Local) -> int:
    return min(rows, local.batch_size * local.accumulate)


def plan_steps(
    rows: Rows,
    lengths: np.ndarray,
    local: Local,
    *,
    seed: int,
    round: int,
    client: str,
    scale: int = 1,
    stretch: int = 1,
) -> list[list[Rows]]:
    """For each step, its micro-batches: passes over the rows in random order, rows of like length together.

    Drawn from the stream (seed, "batches", round, client). A step holds up to batch_size x accumulate rows, each once. With
    `steps`, passes go on until there are enough, and the rows left over at the end of a pass wait for the next. There are `stretch`
    times as many steps as usually.
    """
    generator = stream(seed, "batches", round, client)
    wanted, chunk = stretch * steps_of(len(rows), local, scale), _chunk(len(rows), local)
    steps: list[list[Rows]] = []
    while len(steps) < wanted:
        order = generator.permutation(rows)
        epoch: list[Rows] = []
        for start in range(0, len(order), chunk * _WINDOW):
            window = order[start : start + chunk * _WINDOW]
            window = window[np.argsort(-lengths[window], kind="stable")]
            epoch += [window[i : i + chunk] for i in range(0, len(window), chunk)]
        if local.steps is not None:
            epoch = [step for step in epoch if len(step) == chunk]
        generator.shuffle(epoch)
        steps += [_micro_batches(step, local) for step in epoch]
    return steps[:wanted]


def _micro_batches(step: Rows, local: Local) -> list[Rows]:
    return [step[i : i + local.batch_size] for i in range(0, len(step), local.batch_size)]
