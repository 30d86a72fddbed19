"""Several worker processes: deaths, order, errors, interrupts, and that nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import kept
import psutil
import pytest
import torch
from project import LANGUAGE, OWN, experiment_file

from fedloom import api
from fedloom.config.engine import LocalEngine
from fedloom.engines import pool as module
from fedloom.engines.group import Assignment
from fedloom.engines.pool import PoolEngine, count_workers
from fedloom.engines.worker import as_arrays, as_tensors
from fedloom.errors import ClientError, RunError
from fedloom.federation import Federation
from fedloom.local.store import ClientStore
from fedloom.tracking.rundir import RunDir

TROUBLED = '''

import os
import signal
import time
from pathlib import Path

from fedloom.aggregation.mean import Mean
from fedloom.algorithms.scaffold import Scaffold


def strike(folder, what, client):
    """Whether this client is to have such a trouble now: each file is one, those called `always` stay."""
    for file in sorted(Path(folder).glob(f"{what}-{client}-*")):
        if not file.name.endswith("always"):
            file.unlink()
        return True
    return False


class Fold(Mean):
    def __init__(self, folder, inner):
        super().__init__(inner.unweighted)
        self.folder, self.clients = folder, 0

    def add(self, *arguments, **named):
        self.clients += 1
        if self.clients == 2 and strike(self.folder, "fold", "any"):  # the state of the first is saved by now
            os.kill(os.getpid(), signal.SIGKILL)
        return super().add(*arguments, **named)


class Troubled(Scaffold):
    folder: str

    def combine(self, layout):
        return Fold(self.folder, super().combine(layout))

    def upload(self, delta, w, group):
        for member in group.members:
            with (Path(self.folder) / "order").open("a") as file:
                file.write(f"{member.client} {os.getpid()} {torch.get_num_threads()}\\n")
            if strike(self.folder, "slow", member.client):
                time.sleep(1.5)
            if strike(self.folder, "hang", member.client):
                time.sleep(600)
            if strike(self.folder, "raise", member.client):
                raise RuntimeError("a broken disk")
            if strike(self.folder, "balloon", member.client):
                torch.ones(100_000_000)
            if strike(self.folder, "kill", member.client):
                os.kill(os.getpid(), signal.SIGKILL)
        return super().upload(delta, w, group)
'''
TOPICS = [f"topic-{i}" for i in range(4)]


@pytest.fixture(autouse=True)
def light(tmp_path, monkeypatch):
    """A cache of its own, one template for all pools but those of other processes."""
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fedloom.tracking.results.write_report", lambda path: path)
    kept.keep(monkeypatch)


@pytest.fixture
def trouble(tmp_path):
    """Trouble to come: `trouble(what, client)`, once or, with `always`, every time."""
    folder = tmp_path / "trouble"
    folder.mkdir()

    def make(what, client, *which):
        for one in which or ("1",):
            (folder / f"{what}-{client}-{one}").touch()

    make.order = lambda: [line.split() for line in (folder / "order").read_text().splitlines()]
    return make


def file_of(tmp_path, **changes):
    """The experiment's file, and beside it the user's own module with an algorithm that gets into trouble."""
    settings = {"local__optimizer": "sgd", "local__lr": 0.1, "engine__group_size": 1, "data__held_out": 0.0} | changes
    settings |= {"algorithm": {"name": "own:Troubled", "folder": str(tmp_path / "trouble")}}
    file = experiment_file(tmp_path / "mine", LANGUAGE, **settings)
    (file.parent / "own.py").write_text(OWN + TROUBLED)
    return file


def federated(loaded, path, workers):
    """The federation after all its rounds, with its vector and what its clients keep."""
    prepared = api.prepare(loaded)
    engine = prepared.experiment.engine.model_copy(update={"workers": workers})
    prepared = replace(prepared, experiment=prepared.experiment.model_copy(update={"engine": engine}))
    federation = Federation(prepared, RunDir.create(path, "", {}))
    try:
        federation.run()
    finally:
        federation.engine.close()
        federation.run_dir.close()
    folder = federation.run_dir.path / "clients"
    return federation, {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


@pytest.fixture
def engine(tmp_path, trouble):
    """An engine with two workers, an assignment for it, and a group a client."""
    made = []

    def make(**changes):
        prepared = api.prepare(api.load(file_of(tmp_path, **changes)))
        engine = PoolEngine(prepared, ClientStore(tmp_path / "states"), 2)
        made.append(engine)
        w = prepared.initial.clone()
        work = Assignment(
            1, w, 1.0, prepared.algorithm.broadcast(w, prepared.algorithm.server_state(w, prepared.binding.layout))
        )
        return engine, work, [[prepared.train.clients.index(name)] for name in TOPICS]

    yield make
    for engine in made:
        engine.close()


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def eventually(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def names(results):
    return [report.client for result in results for report in result.reports]


@pytest.mark.parametrize("when", ["kill", "fold"], ids=["before a state is saved", "after one state of two is saved"])
def test_a_killed_worker_changes_no_byte(tmp_path, trouble, when):
    loaded = api.load(file_of(tmp_path, engine__group_size=2))
    quiet, states = federated(loaded, tmp_path / "quiet", 1)
    trouble(when, "any" if when == "fold" else "topic-2", "1", "2")
    shaken, shaken_states = federated(loaded, tmp_path / "shaken", 2)
    assert torch.equal(quiet.progress.w, shaken.progress.w) and len(states) == 12
    assert states == shaken_states
    events = (shaken.run_dir.path / "log.txt").read_text()
    assert events.count("a worker died (was killed by SIGKILL)") == 2
    assert len({pid for _, pid, _ in trouble.order()}) >= 4  # this one, two workers, and their heirs


def test_a_group_that_kills_every_worker_is_named(engine, trouble):
    trouble("kill", "topic-1", "always")
    pool, work, groups = engine()
    results = pool.run(work, groups)
    assert names([next(results)]) == ["topic-0"]
    with pytest.raises(RunError) as caught:
        next(results)
    text = str(caught.value)
    assert "3 workers died of the same clients in round 1: 'topic-1'" in text and "SIGKILL" in text
    assert "topic-2" not in text and "Lower engine.workers" in text
    assert len([1 for client, _, _ in trouble.order() if client == "topic-1"]) == 3


def test_results_come_in_order_whichever_ends_first(engine, trouble, monkeypatch):
    trouble("slow", "topic-0", "1")
    pool, work, groups = engine()
    ends = []
    take = PoolEngine._take
    monkeypatch.setattr(PoolEngine, "_take", lambda self, jobs: (take(self, jobs), ends.append(set(jobs.done))))
    results = list(pool.run(work, groups))
    assert names(results) == TOPICS
    assert ends[-1] >= {0} and any(done and 0 not in done for done in ends), "the first group did not end last"


@pytest.mark.slow
def test_a_slow_worker_changes_no_byte(tmp_path, trouble):
    loaded = api.load(file_of(tmp_path))
    quiet, _ = federated(loaded, tmp_path / "quiet", 1)
    trouble("slow", "topic-0", "1", "2")
    slow, _ = federated(loaded, tmp_path / "slow", 2)
    assert torch.equal(quiet.progress.w, slow.progress.w)


def test_the_longest_group_goes_first(engine, trouble):
    pool, work, groups = engine()
    prepared = pool._prepared
    costs = {name: pool._cost(group) for name, group in zip(TOPICS, groups, strict=True)}
    assert len(set(costs.values())) > 1
    rows = {name: prepared.train.rows(group[0]) for name, group in zip(TOPICS, groups, strict=True)}
    lengths = prepared.table.lengths
    assert costs == {name: pytest.approx(4 * lengths[own].mean()) for name, own in rows.items()}
    pool._workers = [None]  # one worker: it takes them one after the other
    shortest_first = sorted(range(4), key=lambda i: costs[TOPICS[i]])
    list(pool.run(work, [groups[i] for i in shortest_first]))
    assert [client for client, _, _ in trouble.order()] == [TOPICS[i] for i in reversed(shortest_first)]


def test_a_clients_failure_crosses_with_its_traceback(tmp_path, trouble):
    trouble("raise", "topic-2", "always")
    with pytest.raises(ClientError) as caught:
        federated(api.load(file_of(tmp_path)), tmp_path / "run", 2)
    error = caught.value
    assert (error.client, error.round) == ("topic-2", 1) and str(error).startswith(
        "client 'topic-2', round 1: RuntimeError"
    )
    assert "in upload" in error.detail and "a broken disk" in error.detail
    assert "In a worker process" in error.__notes__[0] and "train_group" in error.__notes__[0]


def test_the_first_failure_in_order_is_the_one_that_is_told(engine, trouble):
    """Topic 0 fails last, and is the one that fails in one process."""
    for name in ("slow", "raise"):
        trouble(name, "topic-0", "always")
    trouble("raise", "topic-1", "always")
    pool, work, groups = engine()
    with pytest.raises(ClientError, match="client 'topic-0'"):
        list(pool.run(work, groups))


def test_a_failing_client_is_dropped_alike(tmp_path, trouble):
    loaded = api.load(file_of(tmp_path, federation__on_failure="drop"))
    trouble("raise", "topic-2", "always")
    alone, _ = federated(loaded, tmp_path / "alone", 1)
    pooled, _ = federated(loaded, tmp_path / "pooled", 2)
    assert torch.equal(alone.progress.w, pooled.progress.w)
    lines = [json.loads(x) for x in (pooled.run_dir.path / "clients.jsonl").read_text().splitlines()]
    dropped = [r for r in lines if r.get("status") == "dropped"]
    assert {r["client"] for r in dropped} == {"topic-2"} and "a broken disk" in dropped[0]["reason"]


def test_a_caller_may_go_away(engine, trouble):
    """Workers that are at work are ended; the engine can be asked again, and nothing of before comes in between."""
    trouble("slow", "topic-1", "1")
    pool, work, groups = engine()
    results = pool.run(work, groups)
    next(results)
    busy = [w.pid for w in pool._workers if w is not None and w.group is not None]
    assert busy
    results.close()
    assert not any(alive(pid) for pid in busy)
    assert names(pool.run(replace(work, round=2), groups)) == TOPICS


@pytest.mark.slow
def test_nothing_is_left_after_close(engine, monkeypatch, trouble):
    kept.begin_anew(monkeypatch)
    pool, work, groups = engine()
    list(pool.run(work, groups))
    pids = [pool._template.pid, *(w.pid for w in pool._workers)]
    assert len(pids) == 3 and all(map(alive, pids))
    pool.close()
    assert not any(map(alive, pids))
    pool.close()


@pytest.mark.slow
def test_a_template_and_its_workers_can_be_killed(engine):
    pool, work, groups = engine()
    first = [as_arrays(r.partial.totals)["delta"].tobytes() for r in pool.run(work, groups)]
    for process in [pool._template, *pool._workers]:
        os.kill(process.pid, signal.SIGKILL)
    again = [as_arrays(r.partial.totals)["delta"].tobytes() for r in pool.run(work, groups)]
    assert first == again
    assert any("a worker died" in note for note in pool.notes())


def test_processes_that_die_loading_are_an_error(engine, monkeypatch):
    pool, work, groups = engine()
    pool.close()
    monkeypatch.setattr(module._Process, "start", staticmethod(stillborn))
    with pytest.raises(RunError, match="3 worker processes died while they loaded") as caught:
        next(pool.run(work, groups))
    assert "exit code 7" in str(caught.value) and caught.value.where == "engine.workers"


def stillborn():
    ours, theirs = module.Pipe()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(7)"], pass_fds=[theirs.fileno()])
    theirs.close()
    child.wait(60)
    return module._Process(ours, child.pid, child)


@pytest.mark.slow
def test_data_that_has_changed_is_refused(engine, tmp_path):
    pool, work, groups = engine()
    pool.close()
    own = tmp_path / "mine" / "own.py"
    own.write_text(own.read_text().replace("random.Random(0)", "random.Random(1)"))
    with pytest.raises(RunError, match="a worker process has loaded another data than the run began with"):
        next(pool.run(work, groups))


@pytest.mark.slow
def test_every_worker_has_its_share_of_threads(engine, trouble):
    pool, work, groups = engine(engine__threads=2, local__steps=1)
    list(pool.run(work, groups))
    assert {threads for _, _, threads in trouble.order()} == {"2"}
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        pool, work, groups = engine(engine__threads=None, local__steps=1)
        list(pool.run(work, groups))
    finally:
        torch.set_num_threads(before)
    assert {threads for _, _, threads in trouble.order()[4:]} == {"3"}
    assert sum("set engine.threads" in note for note in pool.notes()) == 1


@pytest.mark.slow
def test_workers_that_cannot_be_forked_load_by_themselves(tmp_path, trouble, monkeypatch):
    """As on GPUs: the same bytes, also after a death."""
    loaded = api.load(file_of(tmp_path))
    quiet, states = federated(loaded, tmp_path / "quiet", 1)
    kept.begin_anew(monkeypatch)
    monkeypatch.setattr(module, "_can_fork", lambda device: False)
    trouble("kill", "topic-2", "1")
    own, own_states = federated(loaded, tmp_path / "own", 2)
    assert torch.equal(quiet.progress.w, own.progress.w) and states == own_states
    assert "a worker died (was killed by SIGKILL)" in (own.run_dir.path / "log.txt").read_text()


def test_too_few_groups_are_told(engine):
    pool, work, groups = engine(engine__group_size=2)
    list(pool.run(work, groups[:1]))  # one client makes one group, whatever the size
    assert pool.notes() == []
    list(pool.run(replace(work, round=2), [[k for group in groups for k in group]]))
    assert pool.notes() == [
        "2 workers, but groups for 1 of them: engine.group_size, now 2, makes more groups when it is lower"
    ]


def test_a_workers_memory_is_told(engine, trouble):
    pool, work, groups = engine()
    trouble("balloon", "topic-1")
    results = list(pool.run(work, groups))
    assert results[1].peak_memory > 300_000_000 + min(r.peak_memory for r in results)


def test_workers_leave_ctrl_c_to_their_parent(engine):
    pool, work, groups = engine()
    list(pool.run(work, groups))
    pids = [pool._template.pid, *(w.pid for w in pool._workers)]
    assert all(os.getpgid(pid) != os.getpgid(0) for pid in pids)
    for pid in pids:
        os.kill(pid, signal.SIGINT)
    assert names(pool.run(replace(work, round=2), groups)) == TOPICS
    assert pids == [pool._template.pid, *(w.pid for w in pool._workers)]


SCRIPT = """
import sys
from fedloom import api
api.run(api.load(sys.argv[1], ["engine.workers=2", "federation.rounds=200"]), sys.argv[2])
"""


def started(tmp_path, command):
    """A run in a process of its own, once its two workers are at work; and all its processes."""
    cut = {k: v for k, v in os.environ.items() if k != "COVERAGE_PROCESS_START"}
    run = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=cut, process_group=0
    )
    order = tmp_path / "trouble" / "order"
    eventually(lambda: run.poll() is not None or (order.exists() and len(order.read_text().splitlines()) > 4), 120)
    assert run.poll() is None, run.stderr.read()
    processes = [run.pid, *(p.pid for p in psutil.Process(run.pid).children(recursive=True))]
    assert len(processes) == 4, "this, a template and two workers"
    return run, processes


@pytest.mark.parametrize("busy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_killed_parent_leaves_no_orphan(tmp_path, trouble, busy):
    run, processes = started(tmp_path, [sys.executable, "-c", SCRIPT, str(file_of(tmp_path)), str(tmp_path / "runs")])
    if busy:  # a worker does not listen, for longer than the test would wait
        trouble("hang", "topic-0")
        eventually(lambda: not (tmp_path / "trouble" / "hang-topic-0-1").exists(), 120)
    run.kill()
    eventually(lambda: not any(map(alive, processes[1:])), 60)
    run.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(tmp_path, trouble, times):
    """The whole process group is sent it, as a terminal does: once, the round is finished; twice, all ends at once."""
    if times == 2:
        trouble("slow", "topic-0", "always")
    command = [sys.executable, "-m", "fedloom", "run", str(file_of(tmp_path)), "--out", str(tmp_path / "runs")]
    run, processes = started(tmp_path, [*command, "engine.workers=2", "federation.rounds=200"])
    for _ in range(times):
        os.killpg(run.pid, signal.SIGINT)
        time.sleep(0.3)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert "Traceback" not in said
    eventually(lambda: not any(map(alive, processes)), 30)
    manifest = json.loads(next((tmp_path / "runs").glob("*/manifest.json")).read_text())
    assert manifest["status"] == "stopped"


@pytest.mark.parametrize(
    ("options", "sockets", "cores", "expected"),
    [
        ({}, 1, 8, 1),
        ({"workers": 3}, 1, 2, 3),
        ({"workers": "auto"}, 1, 8, 2),
        ({"workers": "auto"}, 2, 8, 4),
        ({"workers": "auto"}, 4, 2, 2),
        ({"workers": "auto"}, 0, 1, 1),
    ],
)
def test_how_many_workers(monkeypatch, tmp_path, options, sockets, cores, expected):
    info = tmp_path / "cpuinfo"
    info.write_text(
        "\n".join(f"processor\t: {i}\nphysical id\t: {i % sockets}" for i in range(8)) if sockets else "nothing"
    )
    monkeypatch.setattr(module, "_CPUS", info)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
    assert count_workers(LocalEngine(**options), torch.device("cpu")) == expected


def test_tensors_survive_the_pipe():
    work = Assignment(
        3, torch.randn(5), 0.5, {"a": torch.tensor(1.5)}, layers=torch.tensor([True, False]), scored=("l2", [0, 1])
    )
    there = as_arrays(work)
    assert not any(isinstance(v, torch.Tensor) for v in (there.w, there.server["a"], there.layers))
    back = as_tensors(there)
    assert torch.equal(back.w, work.w) and back.w.data_ptr() % 64 == 0
    assert back.server["a"].shape == () and back.layers.dtype == torch.bool
    assert (back.round, back.scored, back.lr_factor) == (3, ("l2", [0, 1]), 0.5)
