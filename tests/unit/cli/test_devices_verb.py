"""`fedloom devices`, and devices in `fedloom data inspect` and `fedloom list`."""

from __future__ import annotations

import json
import pickle

import pytest
from project import CLASSIFY
from verb_tools import fedloom

from fedloom import selection
from fedloom.devices.files import read_devices


def test_generate_writes_a_file_that_an_experiment_uses(write, tmp_path) -> None:
    file = tmp_path / "phones.parquet"
    said = fedloom("devices", "generate", file, "--devices", "30", "--seed", "3").out
    assert "30 devices" in said and f"devices: {{kind: file, path: {file}}}" in said and "time online" in said
    assert len(read_devices(file)) == 30
    picture = tmp_path / "devices.svg"
    used = write(CLASSIFY, devices={"kind": "file", "path": str(file)})
    facts = fedloom("data", "inspect", used, "--devices", picture, "--json").json
    assert facts["devices"]["devices"] == 5 and len(facts["devices"]["online_by_hour"]) == 168
    assert picture.read_text().startswith("<?xml") and "<svg" in picture.read_text()
    assert "ms a sample" in fedloom("data", "inspect", used).out


def test_import_takes_fedscales_files_over(tmp_path) -> None:
    capacity, behaviour, file = tmp_path / "capacity", tmp_path / "behaviour", tmp_path / "phones.parquet"
    capacity.write_bytes(pickle.dumps({1: {"computation": 162.0, "communication": 5648.1}}))
    trace = {"active": [0], "inactive": [40], "finish_time": 100}
    behaviour.write_bytes(pickle.dumps({3: trace, 4: trace, 5: trace | {"finish_time": 7}}))
    said = fedloom("devices", "import", file, "--capacity", capacity, "--behaviour", behaviour).out
    assert "1 devices" in said and "1 of 3 traces have another period" in said
    found = read_devices(file)
    assert found.ms_per_sample.tolist() == [162.0] and found.availability.online_share.tolist() == [0.4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("devices", "generate", "phones.csv", "--devices", "3"), "Name it phones.parquet"),
        (("devices", "generate", "there.parquet", "--devices", "3"), "nothing is overwritten"),
        (("devices", "generate", "none/phones.parquet", "--devices", "3"), "cannot be written"),
        (("devices", "import", "new.parquet", "--capacity", "text"), "not one of FedScale's files"),
        (("devices", "import", "new.parquet", "--capacity", "none"), "cannot be read"),
    ],
)
def test_what_cannot_be_is_said_in_a_paragraph(arguments, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.parquet").write_text("mine")
    (tmp_path / "text").write_text("no pickle")
    ended = fedloom(*arguments)
    assert ended.code == 2 and words in ended.error and "Traceback" not in ended.error
    assert (tmp_path / "there.parquet").read_text() == "mine" and not (tmp_path / "new.parquet").exists()


def test_an_experiment_without_devices_has_none_to_draw(write, tmp_path) -> None:
    ended = fedloom("data", "inspect", write(), "--devices", tmp_path / "devices.svg")
    assert ended.code == 2 and "has no devices" in ended.error


def test_selectors_are_listed_with_their_papers() -> None:
    rows = json.loads(fedloom("list", "selectors", "--json").out)
    assert [row["name"] for row in rows] == list(selection.SELECTORS)
    assert all(row["title"] and row["paper"] for row in rows)
    assert "Oort" in fedloom("list", "selectors").out and "generated" in fedloom("list", "devices").out


def test_other_devices_are_refused_when_a_run_goes_on(write, tmp_path) -> None:
    from fedloom import api
    from fedloom.errors import RunError

    file = tmp_path / "phones.parquet"
    fedloom("devices", "generate", file, "--devices", "30")
    used = write(CLASSIFY, devices={"kind": "file", "path": str(file)}, federation__rounds=3, tensorboard=False)
    done: list[dict[str, object]] = []
    run = api.run(
        api.load(used), tmp_path / "runs", listeners=[lambda _, r: done.append(r)], stop_asked=lambda: len(done) > 1
    )
    assert not run.finished
    file.unlink()
    fedloom("devices", "generate", file, "--devices", "30", "--seed", "1")
    with pytest.raises(RunError, match="`devices_digest` is not what it was"):
        api.resume(run.path)
