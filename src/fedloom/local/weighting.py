"""What a client's update weighs: p_k in sum_k p_k x_k / sum_k p_k."""

from __future__ import annotations

from fedloom.local.prepare import Prepared

__all__ = ["client_weight"]


def client_weight(prepared: Prepared, client: int) -> float:
    """The weight that `federation.weighting` gives a client."""
    rows = prepared.train.rows(client)
    weighting = prepared.experiment.federation.weighting
    if weighting == "tokens":
        return float(prepared.table.lengths[rows].sum())
    return float(len(rows)) if weighting == "samples" else 1.0
