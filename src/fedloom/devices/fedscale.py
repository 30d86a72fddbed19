"""FedScale's two files of devices, which are pickles, read without running anything that is in them.

    capacity      {id: {"computation": ms a sample, "communication": kbps both ways}}
    availability  {id: {"active": [seconds], "inactive": [seconds], "finish_time": the period in seconds, ...}}

A device here is the i-th capacity with the (i mod number)-th trace, as FedScale pairs them. "active" and "inactive" are the
beginnings and the ends of the intervals; where the last end is missing, the device stays online until the period ends.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedloom.devices.availability import Availability, always, of_intervals
from fedloom.devices.files import check_intervals
from fedloom.devices.population import Population
from fedloom.errors import DataError

__all__ = ["read_fedscale"]


class _Plain(pickle.Unpickler):
    """Reads numbers, text, lists and dictionaries; whatever would import or call something is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_fedscale(capacity: Path, behaviour: Path | None = None) -> tuple[Population, list[str]]:
    """The devices of FedScale's files, always online without the second; and what of them could not be taken, in words.

    Raises DataError for a file that is not such a pickle, with the id of the first device that cannot be.
    """
    found = _entries(capacity, ("computation", "communication"))
    speeds = np.empty((len(found), 2), dtype=np.float32)
    for place, (name, entry) in enumerate(found.items()):
        for column, key in enumerate(("computation", "communication")):
            value = entry[key]
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
                raise DataError(f"{key} is {value!r}, and must be above 0", where=f"{capacity}, id {name!r}")
            speeds[place, column] = value
    compute, kbps = np.ascontiguousarray(speeds.T)
    names = [str(name) for name in found]
    if behaviour is None:
        return Population(compute, kbps, kbps.copy(), always(len(found)), names=names), []
    traces, notes = _traces(behaviour)
    return Population(compute, kbps, kbps.copy(), traces.take(np.arange(len(found)) % len(traces)), names=names), notes


def _traces(path: Path) -> tuple[Availability, list[str]]:
    """The traces of the most frequent period."""
    found = _entries(path, ("active", "inactive", "finish_time"))
    period, count = Counter(entry["finish_time"] for entry in found.values()).most_common(1)[0]
    if not isinstance(period, int) or period <= 0:
        raise DataError(f"finish_time is {period!r}, and must be a whole number of seconds", where=str(path))
    kept = {name: entry for name, entry in found.items() if entry["finish_time"] == period}
    notes = [f"{len(found) - count} of {len(found)} traces have another period than {period} s, and were left out"]
    intervals = [_intervals(entry, period, f"{path}, id {name!r}") for name, entry in kept.items()]
    availability = of_intervals(intervals, period)
    check_intervals(availability, str(path), "trace")
    return availability, notes if count < len(found) else []


def _intervals(entry: Mapping[str, Any], period: int, where: str) -> list[tuple[int, int]]:
    starts, ends = entry["active"], entry["inactive"]
    if not (isinstance(starts, list) and isinstance(ends, list) and len(starts) - len(ends) in (0, 1)):
        raise DataError("`active` and `inactive` are not lists of a length", where=where)
    if not all(isinstance(value, int) and abs(value) < 2**31 for value in [*starts, *ends]):
        raise DataError("`active` and `inactive` are not whole seconds", where=where)
    ends = [*ends, period][: len(starts)]
    joined: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        if joined and joined[-1][1] == start:  # goes on without a break
            joined[-1] = (joined[-1][0], end)
        elif start != end:
            joined.append((start, end))
    return joined


def _entries(path: Path, keys: tuple[str, ...]) -> dict[Any, Mapping[str, Any]]:
    """The pickle's dictionary of dictionaries that have these keys."""
    try:
        with path.open("rb") as file:
            found = _Plain(file).load()
    except OSError as error:
        raise DataError(f"it cannot be read: {error.strerror}", where=str(path)) from error
    except Exception as error:  # a pickle that is none can fail in any way
        what = "this is not one of FedScale's files of devices"
        raise DataError(what, where=str(path), why=str(error) or type(error).__name__) from error
    if not isinstance(found, dict) or not found:
        raise DataError("this is not one of FedScale's files of devices: no dictionary by id", where=str(path))
    for name, entry in found.items():
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise DataError(f"this entry has not {' and '.join(keys)}", where=f"{path}, id {name!r}")
    return found
