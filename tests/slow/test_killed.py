"""Killed with -9 at random moments and resumed, a run ends with the same bytes as when left alone."""

import os
import random
import signal
import time

import pytest
from project import LANGUAGE, experiment

from fedloom import api
from fedloom.errors import RunError

MOMENTS = 50


def in_child(work):
    """Run in a forked child, which has everything imported already; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def wait(pid, seconds):
    """The child's exit code, or None when it is still running after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_fifty_random_moments(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    changes = {"federation__rounds": 8, "federation__clients_per_round": 3, "local__optimizer_state": "keep"}
    loaded = experiment(tmp_path / "mine", LANGUAGE, federation__yardsticks=["local"], **changes)
    api.run(loaded, tmp_path / "warm")  # imports what is imported late, so that the next one's time is a run's own
    started = time.monotonic()
    alone = api.run(loaded, tmp_path / "alone").manifest["adapter_sha256"]
    span = time.monotonic() - started

    moments, kills, runs, endings = random.Random(0), 0, 0, set()
    while kills < MOMENTS:
        out, runs = tmp_path / f"run-{runs}", runs + 1
        finished = False
        while not finished:
            path = out / "tiny"
            pid = in_child(lambda path=path, out=out: api.resume(path) if path.exists() else api.run(loaded, out))
            code = wait(pid, moments.uniform(0, span)) if kills < MOMENTS else wait(pid, 120)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
            else:
                assert code == 0
                finished = True
        endings.add(api.resume(path).manifest["adapter_sha256"])
        rounds = (path / "metrics.jsonl").read_text().count("\n")
        assert rounds == 9, "every round is recorded once"
    assert endings == {alone}
    print(f"{kills} kills over {runs} runs, one digest")


def test_a_run_that_never_began_is_named(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        api.resume(tmp_path)
