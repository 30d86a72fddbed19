"""The drills' experiment, and what it must end in: the same in one process, without those who did not answer."""

from __future__ import annotations

import json
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from drill_processes import processes
from project import LANGUAGE, project

from fedloom.engines.group import ClientReport, ClientUpdate

__all__ = ["CLIENTS", "experiment_text", "reference", "write_project"]

CLIENTS = ("north", "south", "west")
_ROWS = {"north": 30, "south": 24, "west": 18}
_LIMIT = 240.0


def rows(name: str) -> list[dict[str, str]]:
    """One client's rows."""
    r = random.Random(name)
    word = CLIENTS.index(name)
    return [
        {
            "question": " ".join(f"w{r.randrange(20 * word, 20 * word + 20)}" for _ in range(r.randrange(2, 9))),
            "answer": f"w{word} w{word}",
            "site": name,
        }
        for _ in range(_ROWS[name])
    ]


def write_project(folder: Path, *names: str | None) -> None:
    """The model's code; the rows of these clients in one file; and the owner's file, should it be one client."""
    project(folder)
    found = [row for name in names if name is not None for row in rows(name)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (folder / "site.yaml").write_text("data: {source: rows.jsonl}\naccept: {code: ['own:language_model']}\n")


def experiment_text(rounds: int, engine: dict[str, Any], **changes: Any) -> str:
    """The experiment's file; `changes` replace keys, with `__` for the dots."""
    config = json.loads(json.dumps(LANGUAGE))
    config["engine"] = engine
    config["local"] |= {"steps": 2, "grouping": "in_place"}
    config["data"] |= {
        "source": "rows.jsonl",
        "partition": {"kind": "column", "column": "site"},
        "held_out": 0,
        "validation": 0,
    }
    config["federation"] = {"rounds": rounds}
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return json.dumps(config)  # JSON is YAML


@cache
def reference(rounds: int, dropped: frozenset[tuple[str, int]], members: tuple[str, ...], **changes: Any) -> str:
    """The digest of the adapter of a local run over these clients, where those dropped from a round do not count."""
    context = processes()
    mine, theirs = context.Pipe()
    process = context.Process(target=_local, args=(theirs, rounds, dropped, members, changes))
    process.start()
    theirs.close()
    try:
        assert mine.poll(_LIMIT), "the local run does not end"
        return str(mine.recv())
    finally:
        process.kill()
        process.join()


def _local(pipe: Any, rounds: int, dropped: frozenset[tuple[str, int]], members: tuple[str, ...], changes: Any) -> None:
    import torch

    from fedloom.engines import group

    torch.set_num_threads(1)
    inner = group.train_group

    def train(prepared: Any, store: Any, trainer: Any, work: Any, clients: Any) -> Any:
        for update in inner(prepared, store, trainer, work, clients):
            name = update.report.client
            if (name, work.round) in dropped:
                store.discard(name, work.arrives)
                update = ClientUpdate(ClientReport(name, "dropped", reason="as in the drill"))
            yield update

    group.train_group = train
    pipe.send(_run(rounds, members, changes))


def _run(rounds: int, members: tuple[str, ...], changes: Any) -> str:
    from fedloom import api

    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside)
        write_project(folder, *members)
        (folder / "experiment.yaml").write_text(
            experiment_text(rounds, {"kind": "local", "threads": 1, "device": "cpu"}, **changes)
        )
        run = api.run(api.load(folder / "experiment.yaml"), folder / "runs")
        assert run.finished
        return str(run.manifest["adapter_sha256"])
