"""Devices in a Parquet file, a row each.

    device         text       its name
    ms_per_sample  number     milliseconds of a forward pass over one sample
    down_kbps      number     kilobits (1000 bits) a second that it receives
    up_kbps        number     and sends
    online_s       list of    when it comes online, whole seconds from the start of the period
    offline_s      list of    when it goes offline again: as many

The period in seconds, after which the intervals repeat, is in the file's metadata, as `period_s`. A file without the last two
columns, and without a period, holds devices that never go offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedloom.devices.availability import Availability, always
from fedloom.devices.population import Population
from fedloom.errors import DataError

__all__ = ["check_intervals", "read_devices", "write_devices"]

SPEEDS = ("ms_per_sample", "down_kbps", "up_kbps")
TIMES = ("online_s", "offline_s")


def read_devices(path: Path, cost: float = 1.0) -> Population:
    """The devices of a file, in its order.

    Raises DataError for a file that is not one of devices, with the row of the first device that cannot be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise DataError("there is no such file of devices", where=str(path), fix="make one: fedloom devices generate")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError("this is no Parquet file", where=str(path), why=str(error).partition("\n")[0]) from error
    names = table.column_names
    timed = any(name in names for name in TIMES)
    if missing := [name for name in ("device", *SPEEDS, *(TIMES if timed else ())) if name not in names]:
        raise DataError(f"there is no column {missing[0]!r}", where=str(path), fix=f"it has: {', '.join(names)}")
    if not len(table):
        raise DataError("there are no devices in it", where=str(path))
    own = [str(name) for name in table.column("device").to_pylist()]
    compute, down, up = (_speed(table, name, path) for name in SPEEDS)
    availability = _availability(table, path) if timed else always(len(table))
    return Population(compute, down, up, availability, cost, own)


def write_devices(population: Population, path: Path) -> None:
    """Write devices as `read_devices` reads them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    availability = population.availability
    offsets = pa.array(availability.offsets, pa.int64())
    lists = [pa.LargeListArray.from_arrays(offsets, pa.array(v)) for v in (availability.starts, availability.ends)]
    names = population.names or [f"device-{k}" for k in range(len(population))]
    speeds = [population.ms_per_sample, population.down_kbps, population.up_kbps]
    table = pa.table([pa.array(names), *speeds, *lists], names=["device", *SPEEDS, *TIMES])
    aside = path.with_name(f".{path.name}.tmp")
    pq.write_table(table.replace_schema_metadata({"period_s": str(availability.period)}), aside, compression="zstd")
    aside.replace(path)


def check_intervals(availability: Availability, where: str, row: str = "row") -> None:
    """Raises DataError for the first interval that is empty, outside the period, or not after the one before it."""
    starts, ends = availability.starts.astype(np.int64), availability.ends.astype(np.int64)
    inner = np.ones(len(starts), dtype=bool)
    inner[availability.offsets[:-1][np.diff(availability.offsets) > 0]] = False  # the first of a device has none before
    before = np.concatenate([[0], ends[:-1]])
    wrong = {
        "is empty or ends before it begins": ends <= starts,
        f"is not within the period of {availability.period} s": (starts < 0) | (ends > availability.period),
        "begins before the one before it has ended": inner & (starts <= before),
    }
    for what, places in wrong.items():
        if places.any():
            place = int(np.flatnonzero(places)[0])
            device = int(np.searchsorted(availability.offsets, place, side="right")) - 1
            interval = f"the interval [{starts[place]}, {ends[place]}) {what}"
            fix = "sort a device's intervals, and join those that touch"
            raise DataError(interval, where=f"{where}, {row} {device + 1}", fix=fix)


def _speed(table: Any, name: str, path: Path) -> NDArray[np.float32]:
    import pyarrow as pa

    column = table.column(name)
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        raise DataError(f"{name} is {column.type}, not a number", where=str(path))
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if len(bad):
        what = f"{name} is {values[bad[0]]:g}, and must be above 0"
        raise DataError(what, where=f"{path}, row {bad[0] + 1}")
    return values.astype(np.float32)


def _availability(table: Any, path: Path) -> Availability:
    metadata = table.schema.metadata or {}
    try:
        period = int(metadata[b"period_s"])
    except (KeyError, ValueError):
        what = "the file's metadata have no period_s, a whole number of seconds"
        raise DataError(what, where=str(path), fix="write it, or leave online_s and offline_s out") from None
    starts, ends = (_lists(table, name, path) for name in TIMES)
    unlike = np.flatnonzero(starts[0] != ends[0])
    if len(unlike):
        what = "online_s and offline_s are not equally many"
        raise DataError(what, where=f"{path}, row {unlike[0]}")
    availability = Availability(period, starts[0], starts[1], ends[1])
    check_intervals(availability, str(path))
    return availability


def _lists(table: Any, name: str, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The offsets and the values of a column of lists."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name).combine_chunks()
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise DataError(f"{name} is {column.type}, not lists of whole seconds", where=str(path))
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    values = column.flatten()
    if values.null_count or not pa.types.is_integer(values.type):
        raise DataError(f"{name} holds {values.type}, not lists of whole seconds", where=str(path))
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)])
    return offsets, values.to_numpy(zero_copy_only=False).astype(np.int32)
