"""A folder to work in, with a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from project import LANGUAGE, experiment_file
from verb_tools import TROUBLE, Done, fedloom


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; the cache is beside it."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def write(place: Path) -> Callable[..., Path]:
    """Writes `mine/experiment.yaml` and `mine/own.py`; names the file as a user would."""

    def write(config: dict[str, Any] = LANGUAGE, **changes: Any) -> Path:
        experiment_file(place / "mine", config, **changes)
        with (place / "mine" / "own.py").open("a") as file:
            file.write(TROUBLE)
        return Path("mine/experiment.yaml")

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Done]]:
    """A finished run of the language project, and what `run` said; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDLOOM_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        done = fedloom("run", experiment_file(folder / "mine", LANGUAGE), "federation.yardsticks=[local]")
        assert done.code == 0, done.err
        yield folder / "runs" / "tiny", done
