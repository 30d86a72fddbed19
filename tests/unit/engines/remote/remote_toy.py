"""The toy example as a federation: the same experiment for both engines, its rows with eight clients."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch
from memory_link import CoordinatorLink, Crew

from fedloom import api
from fedloom.algorithms import resolve
from fedloom.config.load import dump
from fedloom.config.site import Accept, Site, SiteData
from fedloom.engines.make import make_engine
from fedloom.engines.remote import gathering
from fedloom.engines.remote.engine import RemoteEngine
from fedloom.engines.remote.resident import Resident
from fedloom.engines.remote.standin import RemotePrepared, prepare_remote
from fedloom.tracking.manifest import first_manifest
from fedloom.tracking.rundir import RunDir

TOY = Path(__file__).parents[4] / "examples" / "toy"
SITES = ("north", "east", "south", "west", "coast", "hills", "city", "lake")
FEW = ("coast", "hills", "lake", "north")
ONLY = "data.where=" + json.dumps({"site": list(FEW)})
FORWARD = 'local.gradient={"kind": "forward", "directions": 3, "upload": "seeds"}'
DROP = "federation.on_failure=drop"
TEXT = """
name: toy
model:     {path: sites:model, task: classification}
adapter:   {kind: lora, r: 4, alpha: 16, targets: all-linear}
data:
  source: sites:rows
  max_length: 16
  partition: {kind: column, column: site}
  labels: {harvest: harvest, music: music, traffic: traffic, weather: weather}
  held_out: 0
  validation: 0.2
algorithm: fedavg
federation: {rounds: 2}
local:     {optimizer: sgd, lr: 0.1, steps: 6, batch_size: 8, grouping: in_place}
engine:    {kind: local, threads: 1, device: cpu}
tensorboard: false
"""
REMOTE = "engine={kind: remote, threads: 1, device: cpu, round_deadline: 60}"


def engine(**more):
    """The override that makes a run remote."""
    return "engine=" + json.dumps({"kind": "remote", "threads": 1, "device": "cpu", "round_deadline": 60} | more)


def write_toy(folder: Path) -> Path:
    """The experiment file and its code, and a file of rows for each client."""
    shutil.copy(TOY / "sites.py", folder / "sites.py")
    (folder / "toy.yaml").write_text(TEXT)
    spec = importlib.util.spec_from_file_location("sites_rows", TOY / "sites.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    own = defaultdict(list)
    for row in module.rows():
        own[row["site"]].append({"words": row["text"], "topic": row["label"]})
    for site, rows in own.items():
        (folder / f"{site}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "toy.yaml"


def site_of(name: str, **accept) -> Site:
    """A client's own file: its columns have names of their own."""
    fields = {"text": "words", "label": "topic"}
    return Site(data=SiteData(source=f"{name}.jsonl", fields=fields), accept=Accept(code=["sites:model"], **accept))


def settings_of(name: str, base: Path) -> list[str]:
    """What the toy is run with to show an algorithm."""
    signature = resolve(name, base).signature
    return [f"algorithm={name}", *(f"{key}={json.dumps(value)}" for key, value in signature.items())]


def local_run(file: Path, overrides, out: Path):
    """The run of a local engine: its manifest, and the server's last vector."""
    run = api.run(api.load(file, overrides), out)
    assert run.finished
    return run.manifest, api.open_run(run.path).progress.w


class Remote:
    """A remote run: broker, clients and coordinator, of which each may end and begin again."""

    def __init__(self, folder: Path, broker, monkeypatch, sites=SITES, make_site=site_of):
        self.folder, self.broker, self.sites, self.monkeypatch = folder, broker, sites, monkeypatch
        self.make_site = make_site
        self.lines = defaultdict(list)
        self.run_dir = None
        self.crew = Crew(broker, self.resident)

    def resident(self, name, link):
        home = self.folder / "homes" / name
        told = self.lines[name].append
        return Resident(name, self.make_site(name), link, home, base=self.folder, told=told)

    def time_is_up_when(self, round, answers):
        """The deadline of a round of training comes when so many have answered, and never before; in no time at all."""

        def now():
            came = [a for a in list(self.broker.log.values()) if a.id.endswith(f".{round}.train.0")]
            return 1e9 if len(came) >= answers else 0.0

        self.monkeypatch.setattr(gathering, "time", SimpleNamespace(monotonic=now))

    def prepare(self, experiment, run="run-1", clients=None):
        link = CoordinatorLink(self.broker)
        return link, prepare_remote(experiment, link, run, clients or self.sites)

    def go(self, experiment, *, run="run-1", again=False, link=None, **how):
        """Run, or go on; the run's folder."""
        made = link
        link, prepared = self.prepare(experiment, run)
        link = made or link

        def make(prepared, store, given=None):
            if not isinstance(prepared, RemotePrepared):
                return make_engine(prepared, store, given)
            return RemoteEngine(prepared, store, link)

        self.monkeypatch.setattr("fedloom.federation.make_engine", make)
        path = self.folder / "remote" / experiment.name
        run_dir = RunDir.open(path) if again else RunDir.create(path, dump(experiment), first_manifest(experiment))
        try:
            how = {"listeners": (), "stop_asked": lambda: False} | how
            self.finished = api._federate(prepared, run_dir, "toy", how["listeners"], how["stop_asked"])
        finally:
            self.manifest, self.path = run_dir.manifest(), run_dir.path
            run_dir.close()
        return self

    @property
    def w(self):
        from fedloom.tracking.checkpoint import CheckpointFolder

        experiment = api.load_run(self.path)
        checkpoints = CheckpointFolder(self.path / "checkpoints", experiment.checkpoints)
        return checkpoints.load(checkpoints.newest()).w

    def records(self, name="metrics"):
        return [json.loads(line) for line in (self.path / f"{name}.jsonl").read_text().splitlines()]


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit."""
    return a.numpy().tobytes() == b.numpy().tobytes()


def over(toy, out, sites, rounds=1, algorithm="fedavg"):
    """The vector of a local run over some of the sites alone."""
    overrides = [
        f"algorithm={algorithm}",
        f"federation.rounds={rounds}",
        "data.where=" + json.dumps({"site": list(sites)}),
    ]
    return local_run(toy, [ONLY, *overrides], out)[1]
