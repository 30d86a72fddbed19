"""Sampling in proportion to the size of clients' data (Li et al. 2020, FedProx, algorithm 1).

    P(k is drawn next) = n_k / sum of n over those left

drawn without replacement from those online. Each update then stands for as many rows as were drawn for it: with
`federation.weighting: uniform` the mean is not counted by size twice.
"""

from __future__ import annotations

from typing import ClassVar

from fedloom.devices.availability import Clients
from fedloom.selection.base import Selector
from fedloom.selection.pool import Pool, State, weighted

__all__ = ["BySize"]


class BySize(Selector):
    """Clients with more rows are chosen more often."""

    title: ClassVar[str] = "Sampling by size"
    paper: ClassVar[str] = "Li et al. 2020, Federated Optimization in Heterogeneous Networks, MLSys"
    equation: ClassVar[str] = "algorithm 1"

    def select(self, pool: Pool, count: int, state: State) -> Clients:
        """See `Selector.select`."""
        return weighted(pool.candidates, pool.sizes[pool.candidates].astype(float), count, pool.random())
