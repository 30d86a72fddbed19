"""Workers on Ray: the same bytes as in this process, lost workers and nodes, errors, refusals, and that nothing is left running."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from project import LANGUAGE, OWN, experiment_file
from typer.testing import CliRunner

from fedloom import api
from fedloom.cli.app import app
from fedloom.config.engine import RayEngine as Options
from fedloom.engines import ray as module
from fedloom.engines import ray_cluster
from fedloom.engines.ray import RayEngine
from fedloom.engines.ray_cluster import count_workers, import_ray
from fedloom.engines.ray_worker import _Carried
from fedloom.errors import ClientError, RunError, UsageError
from fedloom.federation import Federation
from fedloom.tracking.rundir import RunDir

HERE = Path(__file__).parents[3]
TOY = HERE / "examples" / "toy" / "experiment.yaml"
COMMON = {"threads": 1, "device": "cpu", "group_size": 2}
TWO = Options(kind="ray", workers=2, **COMMON)
TOPICS = [f"topic-{i}" for i in range(4)]
TROUBLED = '''

import os
import signal
import time
from pathlib import Path

from fedloom.algorithms.scaffold import Scaffold


class Troubled(Scaffold):
    """SCAFFOLD whose clients get into trouble: what and who are files in a folder, those called `always` stay."""

    folder: str

    def upload(self, delta, w, group):
        for member in group.members:
            for what in ("slow", "raise", "kill"):
                for file in sorted(Path(self.folder).glob(f"{what}-{member.client}-*"))[:1]:
                    if not file.name.endswith("always"):
                        file.unlink()
                    self.strike(what, member.client)
        return super().upload(delta, w, group)

    def strike(self, what, client):
        if what == "raise":
            raise RuntimeError("a broken disk")
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        (Path(self.folder) / f"at-{client}").touch()
        time.sleep(float(os.environ.get("SLOW", 0.5)))
'''


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A cache of its own."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)


@pytest.fixture(scope="module")
def cluster():
    """Ray, started once for the engines of these tests, which join it and leave it; the GPUs are only counted."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray = import_ray(Options(kind="ray"))
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL, "_temp_dir": folder}
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, **options)
    yield ray
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def trouble(tmp_path):
    """Trouble to come: `trouble(what, client)`, once or, with `always`, every time."""
    folder = tmp_path / "trouble"
    folder.mkdir()
    return lambda what, client, which="1": (folder / f"{what}-{client}-{which}").touch()


def shell(**variables):
    """The environment of a user's shell: without what Ray in this process was told."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | variables


def file_of(tmp_path, **changes):
    """The experiment's file, and beside it the user's own module with an algorithm that gets into trouble."""
    engine = {"kind": "ray", "workers": 2} | COMMON | {"group_size": 1}
    settings = {"local__optimizer": "sgd", "local__lr": 0.1, "engine": engine, "evaluation": {"every": 0}}
    settings |= {"algorithm": {"name": "own:Troubled", "folder": str(tmp_path / "trouble")}, "federation__rounds": 2}
    file = experiment_file(tmp_path / "mine", LANGUAGE, **(settings | changes))
    (file.parent / "own.py").write_text(OWN + TROUBLED)
    return file


def federated(prepared, engine, path):
    """A run's vector, and everything it leaves but what is measured of its process."""
    experiment = prepared.experiment.model_copy(update={"engine": engine})
    federation = Federation(replace(prepared, experiment=experiment), RunDir.create(path, "", {}))
    try:
        assert federation.run()
    finally:
        federation.engine.close()
        federation.run_dir.close()
    folder, found = federation.run_dir.path, {}
    for name in ("metrics", "clients"):
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        found[name] = [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in records]
    states = folder / "clients"
    found["states"] = {str(p.relative_to(states)): p.read_bytes() for p in states.rglob("*.safetensors")}
    found["server"] = {name: value.numpy().tobytes() for name, value in federation.progress.server.items()}
    return federation.progress.w, found, (folder / "log.txt").read_text()


def toy(**changes):
    settings = {"federation.rounds": 2, "checkpoints.keep_last": 9} | changes
    return api.prepare(api.load(TOY, [f"{key}={json.dumps(value)}" for key, value in settings.items()]))


def same_as_local(prepared, tmp_path, options=TWO):
    local = api.load(TOY, ["engine.group_size=2", "engine.threads=1"]).engine
    local = local.model_copy(update={"group_size": options.group_size})
    w, alone, _ = federated(prepared, local, tmp_path / "alone")
    other, found, log = federated(prepared, options, tmp_path / "ray")
    assert not torch.equal(w, prepared.initial), "nothing was learnt, so nothing is compared"
    assert torch.equal(w, other)
    assert found == alone
    return alone, log


# --- the same bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fedavg_ends_in_the_same_bytes(cluster, tmp_path):
    same_as_local(toy(), tmp_path)
    assert cluster.is_initialized(), "a cluster that was joined is left as it was"


OTHERS = {
    "scaffold": {"algorithm": "scaffold"},
    "fedyogi": {"algorithm": "fedyogi"},
    "fedex_lora": {"algorithm": "fedex_lora", "federation.rounds": 3},
    "personal": {"algorithm": "fedper"},
    "asynchronous, with states": {"algorithm": {"name": "fedbuff", "buffer": 2, "with": [{"name": "fedper"}]}},
    "an optimizer that is kept": {"local.optimizer": "adamw", "local.lr": 0.01, "local.optimizer_state": "keep"},
    "clients' own layers": {"layers": {"kind": "split"}},
    "encoded": {"engine.wire": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_rounds_end_in_the_same_bytes(name, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WORK", 1e9)  # several groups to a message wherever there are enough
    prepared = toy(**OTHERS[name])
    alone, _ = same_as_local(
        prepared, tmp_path, TWO.model_copy(update={"group_size": 1, "wire": "engine.wire" in OTHERS[name]})
    )
    keeps = name in ("scaffold", "personal", "asynchronous, with states", "an optimizer that is kept")
    assert bool(alone["states"]) == keeps
    assert bool(alone["server"]) == (name in ("scaffold", "fedyogi", "fedex_lora", "clients' own layers"))


def test_what_a_client_keeps_is_copied():
    store, memory = _Carried(), torch.ones(2, 3)
    store.save("a", 1, {"c": memory[0]})
    memory.fill_(7)  # the next group of the same message uses it again
    assert store.saved[0][2]["c"].tolist() == [1, 1, 1]


@pytest.mark.slow
def test_gpus_are_reserved_as_asked(cluster, tmp_path):
    prepared = toy()
    options = TWO.model_copy(update={"gpus": 0.5, "cpus": 1.5})
    prepared = replace(prepared, experiment=prepared.experiment.model_copy(update={"engine": options}))
    engine = RayEngine(prepared, api_store(tmp_path))
    try:
        wait_until(lambda: not any(since for _, since in engine._crew.coming.values()) or not step(engine))
        left = cluster.available_resources()
        assert (left["GPU"], left["CPU"]) == (1.0, 1.0)
    finally:
        engine.close()


def step(engine):
    ready, _ = engine._ray.wait([*engine._crew.coming], timeout=1)
    for ref in ready:
        engine._crew.come(ref)


def api_store(tmp_path):
    from fedloom.local.store import ClientStore

    return ClientStore(tmp_path / "states")


def wait_until(done, seconds=120.0):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it has not come to be"
        time.sleep(0.1)


# --- what is refused --------------------------------------------------------------------------------------------------------

ONE, BIG = {"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("options", "nodes", "count"),
    [
        ({}, [ONE], 2),
        ({}, [ONE, ONE], 4),
        ({}, [{"CPU": 1.0}], 1),
        ({"cpus": 2}, [ONE, ONE], 2),
        ({"workers": 4}, [ONE], 4),
        ({"gpus": 1}, [BIG, ONE], 8),
        ({"gpus": 0.25}, [{"CPU": 64.0, "GPU": 2.0}], 8),
        ({"gpus": 0.25}, [{"CPU": 3.0, "GPU": 2.0}], 3),
        ({"device": "cpu"}, [BIG], 32),
        ({"workers": 5}, [ONE], "room for 4 workers that reserve 1 CPUs each, and 5 are asked for"),
        ({"cpus": 3, "workers": 2}, [{"CPU": 5.0}], "room for 1 workers"),
        ({"cpus": 3, "workers": 2}, [{"CPU": 2.0}, {"CPU": 2.0}], "room for 0 workers"),
        ({"gpus": 1, "workers": 9}, [BIG, ONE], "1 CPUs and 1 GPUs each, and 9 are asked for"),
        ({}, [BIG], "the cluster has 8 GPUs, and workers reserve none"),
        ({"device": "cuda"}, [ONE], "workers on a GPU must reserve one"),
    ],
)
def test_the_number_of_workers(options, nodes, count):
    made = Options(kind="ray", **options)
    if isinstance(count, int):
        assert count_workers(made, nodes) == count
    else:
        with pytest.raises(UsageError, match=re.escape(count)) as caught:
            count_workers(made, nodes)
        assert caught.value.where.startswith("engine.") and caught.value.fix


def refused(tmp_path, monkeypatch, **engine):
    """How `fedloom run` says no: one paragraph and exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trouble").mkdir(exist_ok=True)
    done = CliRunner().invoke(app, ["run", str(file_of(tmp_path, engine={"kind": "ray", **COMMON, **engine}))])
    assert done.exit_code == 2, done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    message = done.stderr[done.stderr.index("error: ") :].rstrip("\n")
    assert "\n" not in message
    return message


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(tmp_path, monkeypatch)
    assert "engine: `engine: ray` needs Ray, which is not installed" in said
    assert said.endswith('Run `pip install "fedloom[ray]"`.')


@pytest.fixture
def deaf():
    """A port of this machine where something listens that is not Ray."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1. [Errno 111]"),
        ("127.0.0.1:DEAF", "It could not be joined within 2 seconds"),
        ("nowhere.invalid:6379", "no Ray cluster answers at nowhere.invalid:6379"),
        ("auto", "no Ray cluster answers on this machine. It could not be joined within 2 seconds"),
        ("ray://127.0.0.1:10001", "is no address. Give host:port"),
        ("127.0.0.1", "is no address"),
        ("127.0.0.1:99999", "no Ray cluster answers at"),
    ],
)
def test_an_address_that_does_not_answer(address, why, deaf, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "connect", alone(module.connect))
    monkeypatch.setattr(ray_cluster, "_ANSWER", 2.0)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{deaf}")  # where `auto` looks first
    started = time.monotonic()
    said = refused(tmp_path, monkeypatch, address=address.replace("DEAF", str(deaf)))
    assert why in said and "engine.address" in said
    assert time.monotonic() - started < 120, "Ray itself would try for many minutes"


def alone(connect):
    """Connect as in a process that has not joined a cluster, whatever other tests have started."""

    class Ray:
        is_initialized = staticmethod(lambda: False)

    return lambda ray, options: connect(Ray, options)


def test_ray_is_imported_only_for_its_engine():
    code = "import fedloom.federation, fedloom.engines.make, fedloom.cli.app, sys; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- losses and errors ------------------------------------------------------------------------------------------------------


def worker_processes():
    """The processes of this test's own Ray that are training."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, IndexError):
            found += [process] if process.cmdline()[0].startswith("ray::Actor") else []
    return found


def without_trouble(tmp_path, **changes):
    """The same experiment where nothing happens, in this process."""
    quiet = tmp_path / "quiet"
    (quiet / "trouble").mkdir(parents=True)
    loaded = api.load(file_of(quiet, engine={"kind": "local", **COMMON, "group_size": 1}, **changes))
    return api.run(loaded, quiet / "runs")


def states_of(run):
    folder = run.path / "clients"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


@pytest.mark.slow
def test_groups_of_a_worker_that_is_killed_are_run_elsewhere(cluster, tmp_path, trouble):
    trouble("kill", "topic-1")
    done = api.run(api.load(file_of(tmp_path)), tmp_path / "runs")
    quiet = without_trouble(tmp_path)
    assert done.manifest["adapter_sha256"] == quiet.manifest["adapter_sha256"]
    assert states_of(done) == states_of(quiet) != {}
    assert re.search(r"a worker was lost in round 1 \(.+; its clients are trained again: .*'topic-1'", log_of(done))


def log_of(run):
    return (run.path / "log.txt").read_text()


@pytest.mark.slow
def test_clients_that_cost_three_workers_are_named(cluster, tmp_path, trouble):
    trouble("kill", "topic-2", "always")
    with pytest.raises(RunError, match="3 workers were lost with the same clients in round 1: 'topic-2'") as caught:
        api.run(api.load(file_of(tmp_path)), tmp_path / "runs")
    assert caught.value.exit_code == 1 and "engine.group_size" in caught.value.fix


@pytest.mark.slow
def test_a_clients_error_crosses_with_its_traceback(cluster, tmp_path, trouble):
    trouble("raise", "topic-3", "always")
    trouble("slow", "topic-1", "always")  # the error is there first, and is told in its turn
    with pytest.raises(ClientError) as caught:
        api.run(api.load(file_of(tmp_path)), tmp_path / "runs")
    error = caught.value
    assert (error.client, error.round) == ("topic-3", 1)
    assert str(error).startswith("client 'topic-3', round 1: RuntimeError: a broken disk")
    for text in (error.detail, "".join(error.__notes__)):
        assert 'raise RuntimeError("a broken disk")' in text and "own.py" in text


@pytest.mark.slow
def test_a_client_that_fails_is_dropped_with_its_traceback(cluster, tmp_path, trouble):
    trouble("raise", "topic-3", "always")
    changes = {"federation__on_failure": "drop", "engine": {"kind": "ray", "workers": 2, **COMMON}}
    done = api.run(api.load(file_of(tmp_path, **changes)), tmp_path / "runs")
    records = [json.loads(line) for line in (done.path / "clients.jsonl").read_text().splitlines()]
    records = [r for r in records if "status" in r]  # the others are judgements
    dropped = [r for r in records if r["status"] == "dropped"]
    assert [(r["client"], r["round"]) for r in dropped] == [("topic-3", 1), ("topic-3", 2)]
    assert 'raise RuntimeError("a broken disk")' in dropped[0]["reason"]
    assert len(records) == 8


@pytest.mark.slow
def test_a_worker_that_holds_something_else_is_refused(cluster, tmp_path, trouble, monkeypatch):
    ours = module.facts
    monkeypatch.setattr(module, "facts", lambda prepared: ours(prepared) | {"base model": "another"})
    with pytest.raises(RunError, match=r"a worker on 127\.0\.0\.1 has another base model than this process"):
        api.run(api.load(file_of(tmp_path)), tmp_path / "runs")


@pytest.mark.slow
def test_workers_without_groups_are_told_of(cluster, tmp_path, trouble):
    done = api.run(
        api.load(file_of(tmp_path, engine={"kind": "ray", "workers": 2, "device": "cpu"})), tmp_path / "runs"
    )
    log = log_of(done)
    assert "note: 2 workers, but groups for 1 of them: engine.group_size, now 4, makes more groups" in log
    assert "set engine.threads for the same bytes as on another engine" in log
    assert log.count("note: 2 workers") == 1


@pytest.mark.slow
def test_a_cluster_without_room_is_given_up(cluster, tmp_path, trouble, monkeypatch):
    monkeypatch.setattr(module, "_ROOM", 3.0)

    class Idle:
        pass

    taken = [cluster.remote(num_cpus=4)(Idle).remote()]
    wait_until(lambda: cluster.available_resources().get("CPU", 0) == 0)
    try:
        with pytest.raises(UsageError, match="no room for a worker; clients that wait: 'topic-0', "):
            api.run(api.load(file_of(tmp_path)), tmp_path / "runs")
    finally:
        cluster.kill(taken[0])
    wait_until(lambda: cluster.available_resources().get("CPU", 0) == 4)


# --- processes of their own -------------------------------------------------------------------------------------------------


class Marked:
    """`fedloom` in a process group of its own, and all that it starts, known by a word in their environment."""

    def __init__(self, tmp_path, *command, **environment):
        self.mark = uuid.uuid4().hex
        own = {"MARK": self.mark, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | environment
        self.err = tmp_path / f"err-{self.mark}"
        with self.err.open("w") as err:
            command = [sys.executable, "-m", "fedloom", *map(str, command)]
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True, cwd=tmp_path,
                env=shell(**own),
            )  # fmt: skip

    def wait_for(self, text, seconds=180):
        wait_until(lambda: text in self.err.read_text() or self.process.poll() is not None, seconds)
        assert text in self.err.read_text(), self.err.read_text()

    def end(self, seconds=180):
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, self.err.read_text()

    def others(self):
        """Its processes but for the first."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.process.pid and process.environ().get("MARK") == self.mark:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def stop(self):
        for process in [*self.others(), self.process]:
            with contextlib.suppress(psutil.Error, OSError):
                process.kill()
        self.process.wait(30)


@pytest.fixture
def start(tmp_path):
    made = []

    def make(*command, **environment):
        made.append(Marked(tmp_path, *command, **environment))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.mark.slow
def test_nothing_is_left_and_nothing_else_is_said(tmp_path, start, trouble):
    trouble("slow", "topic-0", "always")
    run = start("run", file_of(tmp_path), "--json")
    wait_until(lambda: (tmp_path / "trouble" / "at-topic-0").exists(), 180)
    listening = {
        c.laddr.ip.removeprefix("::ffff:")
        for process in [psutil.Process(run.process.pid), *run.others()]
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    names = " ".join(" ".join(process.cmdline()) for process in run.others())
    folder = re.search(r"/\S*/fedloom-ray-\w+", names)[0]
    code, out, err = run.end()
    assert code == 0, err
    assert re.fullmatch(r"tiny\n(  round \d/2 .*\n){3}", err), err
    assert json.loads(out)["adapter_sha256"] == without_trouble(tmp_path).manifest["adapter_sha256"]
    wait_until(lambda: not run.others(), 30)
    assert not Path(folder).exists()


@pytest.mark.slow
def test_a_driver_that_is_killed_is_resumed(tmp_path, start, trouble):
    trouble("slow", "topic-1", "always")
    run = start("run", file_of(tmp_path, federation__rounds=3))
    run.wait_for("round 1/3")
    (tmp_path / "trouble" / "at-topic-1").unlink()
    wait_until(lambda: (tmp_path / "trouble" / "at-topic-1").exists(), 60)  # amid the second round or a later one
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL
    wait_until(lambda: not run.others(), 240)  # Ray's own agents take a minute to see it

    resumed = start("resume", "runs/tiny", "--json")
    code, out, err = resumed.end()
    assert code == 0, err
    quiet = without_trouble(tmp_path, federation__rounds=3)
    assert json.loads(out)["adapter_sha256"] == quiet.manifest["adapter_sha256"]


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupt_finishes_the_round_and_a_second_stops_at_once(times, tmp_path, start, trouble):
    trouble("slow", "topic-1", "always")
    run = start("run", file_of(tmp_path, federation__rounds=50), SLOW="3")
    run.wait_for("round 1/50")
    (tmp_path / "trouble" / "at-topic-1").unlink()
    wait_until(lambda: (tmp_path / "trouble" / "at-topic-1").exists(), 60)
    os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does: to all of the group
    run.wait_for("finishing the round")
    if times == 2:
        os.killpg(run.process.pid, signal.SIGINT)
    code, _, err = run.end(60)
    assert code == 130 and "Traceback" not in err
    rounds = err.count("  round ") - 1
    saved = max(int(p.name.removeprefix("round-")) for p in (tmp_path / "runs/tiny/checkpoints").iterdir())
    assert saved == rounds
    assert err.rstrip().endswith("interrupted" if times == 2 else "fedloom resume runs/tiny")
    assert (rounds >= 2) if times == 1 else (rounds < 50)
    wait_until(lambda: not run.others(), 60)


# --- two nodes --------------------------------------------------------------------------------------------------------------

NODES = {"fedloom-ray-a": "10.213.7.1", "fedloom-ray-b": "10.213.7.2"}
FIRST, OTHER = NODES


def recipe():
    """The commands of docs/ray.md, by the word that is their place."""
    text = (HERE / "docs" / "ray.md").read_text()
    return dict(re.findall(r"<!-- (\w+) -->\n```\n(.+?)\n```", text, re.DOTALL))


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Machine:
    """A network namespace with a home of its own: what runs there reaches the other and nothing else."""

    def __init__(self, name, home):
        self.name, self.home = name, home
        self.environment = {"HOME": str(home), "RAY_TMPDIR": str(home), "OMP_NUM_THREADS": "1"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(self, *commands):
        """Commands as a user types them, one after the other."""
        script = "\n".join(commands).replace("FIRST", NODES[FIRST])
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, "bash", "-e", "-c", script], env=shell(**self.environment), cwd=HERE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *commands):
        """How they end."""
        done = self.start(*commands)
        out, err = done.communicate(timeout=300)
        return done.returncode, out, err

    def lose(self):
        """All that runs there, at once."""
        pids = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, timeout=30).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def machines():
    """Two of them, on one wire; without leave to make them there is nothing to test."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2, for network namespaces")
    homes = [Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")) for _ in NODES]
    made = [Machine(name, home) for name, home in zip(NODES, homes, strict=True)]
    try:
        for name in NODES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=30)
            ip("netns", "add", name)
        ip("link", "add", "ray0", "netns", FIRST, "type", "veth", "peer", "name", "ray1", "netns", OTHER)
        for (name, address), link, gate in zip(NODES.items(), ("ray0", "ray1"), [*NODES.values()][::-1], strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "route", "add", "default", "via", gate)
        yield made
    finally:
        for machine in made:
            machine.lose()
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, timeout=30)
            shutil.rmtree(machine.home, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_machines_as_documented_one_of_which_is_lost(machines, tmp_path, trouble):
    said, (first, other) = recipe(), machines
    assert first.run(said["both"], said["token"])[0] == 0
    shutil.copytree(first.home / ".ray", other.home / ".ray")
    assert oct((other.home / ".ray" / "auth_token").stat().st_mode)[-3:] == "600"
    for machine, command in ((first, said["first"]), (other, said["other"])):
        code, out, err = machine.run(said["both"], command)
        assert code == 0 and "Ray runtime started" in out + err, out + err

    code, _, err = first.run(said["run"])  # in a shell that has not been told of the token
    assert code == 2 and "it asks for another token" in err.lower() and err.count("\n") == 1, err
    code, out, err = first.run(said["both"], f"{said['run']} --json --out {tmp_path}/runs")
    assert code == 0, err
    assert re.fullmatch(r"toy\n(  round \d/5 .*\n){6}", err), err
    alone = api.run(api.load(TOY, ["engine.group_size=2"]), tmp_path / "alone")
    assert json.loads(out)["adapter_sha256"] == alone.manifest["adapter_sha256"]

    for topic in TOPICS:
        trouble("slow", topic, "always")
    engine = {"kind": "ray", "address": f"{NODES[FIRST]}:6379", "workers": 2} | COMMON | {"group_size": 1}
    file = file_of(tmp_path, engine=engine, federation__rounds=6)
    run = first.start(said["both"], f"SLOW=1 fedloom run {file} --json --out {tmp_path}/runs")
    log = tmp_path / "runs" / "tiny" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= 3)  # both have been ready for a while
    other.lose()
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    quiet = without_trouble(tmp_path, federation__rounds=6)
    assert json.loads(out)["adapter_sha256"] == quiet.manifest["adapter_sha256"]
    assert "a worker was lost in round" in (tmp_path / "runs" / "tiny" / "log.txt").read_text()
