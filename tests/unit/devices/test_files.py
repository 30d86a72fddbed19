"""Devices in files: ours, which round-trip, and FedScale's, of which nothing is run."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedloom.devices.fedscale import read_fedscale
from fedloom.devices.files import read_devices, write_devices
from fedloom.devices.generate import generate
from fedloom.errors import DataError

GOOD = {"device": ["a", "b"], "ms_per_sample": [50.0, 80.0], "down_kbps": [6000, 100], "up_kbps": [3000, 90]}
TIMES = {"online_s": [[0, 50], []], "offline_s": [[10, 100], []]}


def written(path, columns, period=100):
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(None if period is None else {"period_s": str(period)}), path)
    return path


def test_what_is_written_is_read(tmp_path):
    made = generate(50, seed=3)
    write_devices(made, tmp_path / "devices.parquet")
    read = read_devices(tmp_path / "devices.parquet", cost=2.0)
    for name in ("ms_per_sample", "down_kbps", "up_kbps"):
        assert (getattr(read, name) == getattr(made, name)).all()
    for name in ("period", "offsets", "starts", "ends"):
        assert np.array_equal(getattr(read.availability, name), getattr(made.availability, name))
    assert read.cost == 2.0 and read.names[0] == "device-0"


def test_a_file_of_ones_own(tmp_path):
    read = read_devices(written(tmp_path / "own.parquet", GOOD | TIMES))
    assert read.availability.online(5).tolist() == [True, False]
    assert read.availability.until(np.array([0]), 60)[0] == 110  # on through the end of the period
    always = read_devices(written(tmp_path / "on.parquet", GOOD, period=None))
    assert always.availability.online(5).tolist() == [True, True]


@pytest.mark.parametrize(
    ("change", "period", "words"),
    [
        ({"up_kbps": None}, 100, "there is no column 'up_kbps'"),
        ({"offline_s": None}, 100, "there is no column 'offline_s'"),
        ({"ms_per_sample": ["fast", "slow"]}, 100, "ms_per_sample is string, not a number"),
        ({"ms_per_sample": [50.0, 0.0]}, 100, "row 2: ms_per_sample is 0"),
        ({"down_kbps": [float("nan"), 1.0]}, 100, "row 1: down_kbps is nan"),
        ({"online_s": [[0, 5], []]}, 100, r"row 1: the interval \[5, 100\) begins before the one before it has ended"),
        (
            {"online_s": [[50, 0], []], "offline_s": [[100, 10], []]},
            100,
            r"row 1: the interval \[0, 10\) begins before",
        ),
        ({"online_s": [[], [7]], "offline_s": [[], [7]]}, 100, "row 2: .* is empty"),
        ({"online_s": [[], [7]], "offline_s": [[], [101]]}, 100, "row 2: .* not within the period of 100 s"),
        ({"online_s": [[0, 50], [1]]}, 100, "row 2: online_s and offline_s are not equally many"),
        ({"online_s": [[0.5, 50.0], []]}, 100, "not lists of whole seconds"),
        ({"online_s": [3, 4]}, 100, "not lists of whole seconds"),
        ({}, None, "no period_s"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, change, period, words):
    columns = {name: values for name, values in (GOOD | TIMES | change).items() if values is not None}
    with pytest.raises(DataError, match=words):
        read_devices(written(tmp_path / "bad.parquet", columns, period))


def test_what_is_no_file_of_devices(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_devices(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("device,ms\n")
    with pytest.raises(DataError, match="no Parquet file"):
        read_devices(tmp_path / "text.parquet")
    written(tmp_path / "empty.parquet", {name: values[:0] for name, values in GOOD.items()})
    with pytest.raises(DataError, match=r"ms_per_sample is null|no devices"):
        read_devices(tmp_path / "empty.parquet")


CAPACITY = {
    1: {"computation": 162.0, "communication": 5648.1},
    2: {"computation": 20.0, "communication": 100.0},
    3: {"computation": 30.0, "communication": 90.0},
}
TRACES = {
    7: {"duration": 30, "active": [0, 50], "inactive": [10, 70], "finish_time": 100, "model": "CPH1801"},
    8: {"duration": 40, "active": [60], "inactive": [], "finish_time": 100, "model": "x"},
    9: {"duration": 10, "active": [0], "inactive": [10], "finish_time": 90, "model": "x"},
}


def dumped(path, what):
    path.write_bytes(what if isinstance(what, bytes) else pickle.dumps(what))
    return path


def test_fedscales_files(tmp_path):
    capacity, behaviour = dumped(tmp_path / "capacity", CAPACITY), dumped(tmp_path / "behave", TRACES)
    devices, notes = read_fedscale(capacity, behaviour)
    assert devices.ms_per_sample.tolist() == [162.0, 20.0, 30.0]
    assert devices.down_kbps.tolist() == devices.up_kbps.tolist() == pytest.approx([5648.1, 100.0, 90.0])
    assert devices.names == ["1", "2", "3"]
    assert [devices.availability.online(at).tolist() for at in (5, 65)] == [[True, False, True], [True, True, True]]
    assert devices.availability.until(np.array([1]), 65)[0] == 100  # the last end is missing
    assert notes == ["1 of 3 traces have another period than 100 s, and were left out"]
    alone, notes = read_fedscale(capacity)
    assert alone.availability.online(1e6).all() and notes == []


class Evil:
    """Would make a folder where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("capacity", "traces", "words"),
    [
        (b"no pickle", None, "not one of FedScale's files"),
        (b"", None, "not one of FedScale's files"),
        ([1, 2], None, "no dictionary by id"),
        ({}, None, "no dictionary by id"),
        ({5: {"computation": 1.0}}, None, "id 5: this entry has not computation and communication"),
        ({5: {"computation": -1.0, "communication": 2.0}}, None, "id 5: computation is -1.0"),
        ({5: {"computation": "fast", "communication": 2.0}}, None, "id 5: computation is 'fast'"),
        (CAPACITY, {7: TRACES[7] | {"active": [0, 5]}}, r"trace 1: the interval \[5, 70\) begins before"),
        (
            CAPACITY,
            {7: TRACES[7] | {"active": [0, 50, 80, 90]}},
            "id 7: `active` and `inactive` are not lists of a length",
        ),
        (CAPACITY, {7: TRACES[7] | {"active": [0, "x"]}}, "id 7: .* not whole seconds"),
        (CAPACITY, {7: TRACES[7] | {"finish_time": 0}}, "finish_time is 0"),
    ],
)
def test_what_is_not_fedscales_is_named(tmp_path, capacity, traces, words):
    file = dumped(tmp_path / "capacity", capacity)
    behaviour = None if traces is None else dumped(tmp_path / "behave", traces)
    with pytest.raises(DataError, match=words):
        read_fedscale(file, behaviour)


def test_nothing_in_a_pickle_is_run(tmp_path):
    made = tmp_path / "made"
    for evil in (Evil(str(made)), {5: {"computation": Evil(str(made)), "communication": 2.0}}):
        with pytest.raises(DataError, match=r"asks for posix\.mkdir"):
            read_fedscale(dumped(tmp_path / "capacity", evil))
    assert not made.exists()
