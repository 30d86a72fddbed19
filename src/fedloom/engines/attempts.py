"""What clients' devices did in a round: what of it was of use, what was in vain, and what the selector learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.engines.group import ClientReport
from fedloom.selection.clock import ARRIVED, FATES, LATE, OFFLINE
from fedloom.selection.cohort import Cohort
from fedloom.selection.pool import Feedback

__all__ = ["account", "client_records", "feedback"]


def account(cohort: Cohort, reports: Sequence[ClientReport], names: Sequence[str]) -> dict[str, Any]:
    """A round's record of devices: every second and byte is either of use, for the update is in the round, or wasted."""
    attempts = cohort.attempts
    if attempts is None:
        return {}
    ok = {report.client for report in reports if report.status == "ok"}
    useful = attempts.arrived & np.array([names[k] in ok for k in attempts.clients], dtype=bool)
    return {
        "asked": len(useful),
        LATE: int((attempts.fate == FATES.index(LATE)).sum()),
        OFFLINE: int((attempts.fate == FATES.index(OFFLINE)).sum()),
        "device_seconds": round(float(attempts.seconds[useful].sum()), 3),
        "wasted_seconds": round(float(attempts.seconds[~useful].sum()), 3),
        "wasted_bytes_down": int(attempts.bytes_down[~useful].sum()),
        "wasted_bytes_up": int(attempts.bytes_up[~useful].sum()),
    }


def client_records(cohort: Cohort, reports: Sequence[ClientReport], names: Sequence[str]) -> list[dict[str, Any]]:
    """A record a client that was asked; where devices are known, with when it began and for how long it worked."""
    found = {report.client: dict(vars(report)) for report in reports}
    attempts = cohort.attempts
    if attempts is not None:
        rows = zip(*(values.tolist() for values in vars(attempts).values()), strict=True)
        for client, fate, began, seconds, down, up in rows:
            times = {"virtual_began": round(began, 3), "virtual_seconds": round(seconds, 3)}
            record = found.setdefault(names[client], {"client": names[client], "status": FATES[fate]})
            record |= times if FATES[fate] == ARRIVED else times | {"bytes_down": int(down), "bytes_up": int(up)}
    return list(found.values())


def feedback(
    cohort: Cohort, reports: Sequence[ClientReport], names: Sequence[str], sizes: NDArray[np.int64]
) -> Feedback:
    """What the selector is told of all that were asked; `sizes` are the rows of all clients."""
    if cohort.attempts is not None:
        clients = cohort.attempts.clients
    else:
        clients = np.array([k for version in cohort.started.values() for k in version])
    by_name: Mapping[str, ClientReport] = {report.client: report for report in reports if report.status == "ok"}
    own = [by_name.get(names[k]) for k in clients]

    def values(name: str) -> Any:
        return np.array(
            [np.nan if r is None or getattr(r, name) is None else getattr(r, name) for r in own], dtype=np.float64
        )

    return Feedback(
        clients=clients,
        arrived=np.array([r is not None for r in own], dtype=bool),
        samples=np.minimum(np.nan_to_num(values("samples")).astype(np.int64), sizes[clients]),
        loss=values("train_loss"),
        loss_square=values("loss_square"),
    )
