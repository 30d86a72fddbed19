"""What an engine and a judge put into their asks alike: the vector, stored once, and what a client must know beside it."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from fedloom.engines.remote.link import Blob, ServerLink
from fedloom.engines.remote.messages import Vector, pack_mask, vector
from fedloom.engines.remote.standin import RemotePrepared
from fedloom.local.store import ClientStore

__all__ = ["Asking"]

_VOID = "void"


class Asking:
    """The coordinator's side of what is sent, and of which rounds of whom did not count."""

    def __init__(self, prepared: RemotePrepared, store: ClientStore, link: ServerLink) -> None:
        self._prepared, self._store, self._link = prepared, store, link
        self._latest: tuple[dict[str, Tensor], int, Blob, Vector] | None = None
        self.notes = list(prepared.said)
        self._noted: set[str] = set()

    def note(self, key: str, text: str) -> None:
        """Say something once for a key."""
        if key not in self._noted:
            self._noted.add(key)
            self.notes.append(text)

    def vector(self, w: Tensor, beside: Mapping[str, Tensor], round: int) -> tuple[Blob, Vector]:
        """The server's vector as the clients asked in a round are sent it."""
        sent = {**beside, "w": w}
        if self._latest is not None and self._latest[1] == round and _same(self._latest[0], sent):
            return self._latest[2], self._latest[3]
        content, facts = vector(self._prepared, w, beside, round)
        if facts.whole:
            what = "the whole vector is sent to clients, for one may have missed rounds; bytes_down counts what the method sends"
            self.note("whole", f"{what} ({len(content)} bytes a client are sent)")
        blob = self._put(content, round)
        self._latest = sent, round, blob, facts
        return blob, facts

    def mask(self, entries: Tensor, round: int) -> Blob:
        """The entries, `[n]`, that train."""
        return self._put(pack_mask(entries), round)

    def common(self, client: int, facts: Vector, before: int) -> dict[str, Any]:
        """What a client must know whatever it is asked; of its rounds, those before this one that did not count."""
        prepared = self._prepared
        ranks = prepared.ranks
        return {
            "vector": facts,
            "total": len(prepared.train),
            "rank": None if ranks is None else ranks[client],
            "void": self._void(client, before),
        }

    def settle(self, client: int, round: int, joined: bool) -> None:
        """Write down whether a client's update joined a round: what it kept after one that did not is forgotten."""
        name = self._prepared.train.clients[client]
        void = self._void(client, round) + ([] if joined else [round])
        if void != self._void(client, round + 1):
            self._store.save(name, round, {_VOID: torch.tensor(void, dtype=torch.int64)})

    def _void(self, client: int, before: int) -> list[int]:
        state = self._store.load(self._prepared.train.clients[client], before) or {}
        found: list[int] = state[_VOID].tolist() if _VOID in state else []
        return found

    def _put(self, content: bytes, round: int) -> Blob:
        """Named by its content: the same bytes, for whatever they are sent, are stored and fetched once."""
        return self._link.put(f"{self._prepared.run}.{round}.{sha256(content).hexdigest()[:32]}", content)


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name] is b[name] for name in a)
