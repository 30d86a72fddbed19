"""The coordinator's jobs and what its operator may ask; here the jobs train in this process."""

import json
import threading
import time
import urllib.request

import pytest
from project import LANGUAGE, experiment

from fedloom import api
from fedloom.config.load import dump
from fedloom.deployment.control import Logs, Reply, Status, Stop, Submit
from fedloom.deployment.coordinator import Coordinator
from fedloom.deployment.jobs import Jobs
from fedloom.deployment.metrics import serve_metrics
from fedloom.engines.remote.link import Presence
from fedloom.errors import RunError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))


class Link:
    clients = ("a", "b")

    def presence(self):
        return {"a": Presence(client="a", seen=0.5, busy="1.2.train.0")}


class Service:
    """A coordinator that serves in a thread of its own."""

    def __init__(self, folder):
        self.coordinator = Coordinator(Link(), folder, "demo")
        self.thread = threading.Thread(target=self.coordinator.serve, daemon=True)
        self.thread.start()

    def ask(self, request):
        return Reply.model_validate_json(self.coordinator.answer(request.model_dump_json().encode()))

    def wait(self, job, *states):
        for _ in range(600):
            found = next(j for j in self.ask(Status()).data["jobs"] if j["id"] == job)
            if found["state"] in states:
                return found
            time.sleep(0.1)
        raise AssertionError(found)

    def end(self):
        self.coordinator.drain()
        self.thread.join(timeout=60)
        assert not self.thread.is_alive()


@pytest.fixture
def service(tmp_path):
    made = Service(tmp_path / "here")
    yield made
    made.end()


def text(tmp_path, **changes):
    return dump(experiment(tmp_path / "here", LANGUAGE, **changes))


def submit(service, content, key="key-00001"):
    return service.ask(Submit(name="mine", text=content, key=key))


def test_a_job_is_done_and_its_log_can_be_read(service, tmp_path):
    said = submit(service, text(tmp_path)).data
    assert said == {"job": 1, "state": "queued"}
    found = service.wait(1, "finished")
    assert found["run"].startswith(str(tmp_path)) and found["error"] is None
    log = service.ask(Logs(job=1)).data
    assert log["over"] and "finished after" in log["lines"][-1] and log["next"] == len(log["lines"])
    assert service.ask(Logs(job=1, after=log["next"])).data["lines"] == []
    totals = service.ask(Status()).data["totals"]
    assert totals["rounds"] == LANGUAGE["federation"]["rounds"] and totals["bytes_up"] > 0


def test_the_same_job_twice_is_one(service, tmp_path):
    content = text(tmp_path)
    assert submit(service, content).data["job"] == submit(service, content).data["job"] == 1
    assert submit(service, content, "key-00002").data["job"] == 2


def test_who_is_there(service):
    clients = service.ask(Status()).data["clients"]
    assert [(c["client"], c["online"]) for c in clients] == [("a", True), ("b", False)]
    assert clients[0]["busy"] == "1.2.train.0"


def test_a_job_that_cannot_be_run_fails_and_the_next_goes_on(service, tmp_path):
    submit(service, text(tmp_path).replace("lr:", "lrr:"))
    failed = service.wait(1, "failed")
    assert "lrr" in failed["error"]
    submit(service, text(tmp_path), "key-00002")
    service.wait(2, "finished")


def test_it_can_be_told_to_end_amid_anything(tmp_path):
    """A signal's handler may interrupt the thread that holds the lock of what it waits for."""
    coordinator = Coordinator(Link(), tmp_path / "here", "demo")
    telling = threading.Thread(target=coordinator.drain, daemon=True)
    with coordinator._asked._cond:
        telling.start()
        telling.join(timeout=20)
        assert not telling.is_alive()
    coordinator.serve()


def test_requests_that_are_none_get_an_answer(service):
    for content in (b"", b"{}", b'{"kind": "stop", "job": "1"}', b"\xff\x00", b'{"kind": "status", "more": 1}'):
        reply = Reply.model_validate_json(service.coordinator.answer(content))
        assert reply.error is not None and "does not understand" in reply.error
    assert service.ask(Stop(job=7)).error == "there is no job 7"
    assert service.ask(Logs(job=7)).error == "there is no job 7"


def test_stopped_and_resumed_it_ends_with_the_same_bytes(tmp_path):
    content = text(tmp_path, federation__rounds=30)
    whole = api.run(api.load(_file(tmp_path, content), base=tmp_path / "here"), tmp_path / "whole")
    first = Service(tmp_path / "here")
    submit(first, content)
    while first.ask(Status()).data["current"].get("round", 0) < 2:
        time.sleep(0.01)
    first.end()
    assert [job.state for job in Jobs(tmp_path / "here" / "jobs")] == ["running"], "it goes on by itself"
    second = Service(tmp_path / "here")
    found = second.wait(1, "finished")
    second.end()
    manifest = json.loads((tmp_path / found["run"] / "manifest.json").read_text())
    assert manifest["adapter_sha256"] == whole.manifest["adapter_sha256"]
    assert "resumed after round" in (tmp_path / found["run"] / "log.txt").read_text()


def test_a_job_that_was_stopped_is_over(tmp_path):
    service = Service(tmp_path / "here")
    submit(service, text(tmp_path, federation__rounds=200))
    submit(service, text(tmp_path), "key-00002")
    while service.ask(Status()).data["current"].get("round", 0) < 1:
        time.sleep(0.01)
    assert service.ask(Stop(job=2)).data["state"] == "stopped"
    assert service.ask(Stop(job=1)).data["state"] == "stopping"
    service.wait(1, "stopped")
    service.end()
    assert Jobs(tmp_path / "here" / "jobs").next() is None


def test_a_damaged_job_is_named(tmp_path):
    jobs = Jobs(tmp_path)
    jobs.submit("name: x", "x", "key-00001")
    (tmp_path / "000001.json").write_text("{")
    with pytest.raises(RunError, match=r"000001\.json: a job cannot be read"):
        jobs.next()


def test_metrics_are_those_of_the_status(service, tmp_path):
    submit(service, text(tmp_path))
    service.wait(1, "finished")
    with serve_metrics(service.coordinator.status, 0) as port:
        lines = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode().splitlines()
        with pytest.raises(UsageError, match="cannot be served"), serve_metrics(service.coordinator.status, port):
            pass
    assert 'fedloom_client_online{client="a"} 1.0' in lines and 'fedloom_client_online{client="b"} 0.0' in lines
    assert 'fedloom_jobs{state="finished"} 1.0' in lines
    assert f"fedloom_rounds_total {LANGUAGE['federation']['rounds']}.0" in lines


def _file(tmp_path, content):
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    return path
