"""Random streams keyed by what they are for, never by when they are drawn.

A stream is Philox4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by
`blake2b(seed, purpose, *key)`, so any worker, in any order, draws the same numbers for the same
(seed, purpose, round, client, step).
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["stream", "stream_seed"]


def stream_seed(seed: int, purpose: str, *key: int | str) -> int:
    """A 63-bit seed for the stream (seed, purpose, *key); keys are length-prefixed, so ("ab", "c") is not ("a", "bc")."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (seed, purpose, *key):
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest()[:8], "little") >> 1


def stream(seed: int, purpose: str, *key: int | str) -> np.random.Generator:
    """The generator of the stream (seed, purpose, *key)."""
    return np.random.Generator(np.random.Philox(key=stream_seed(seed, purpose, *key)))
