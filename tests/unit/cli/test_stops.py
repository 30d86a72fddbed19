"""A run that is interrupted, locked, damaged or out of disk: what it says, how it leaves, and that it can go on."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from project import CLASSIFY, LANGUAGE
from verb_tools import Process, fedloom

OWN = {"model__path": "own:troubled", "federation__rounds": 4, "checkpoints": {"keep_last": 9}}


def checkpoints() -> list[str]:
    return sorted(p.name for p in Path("runs/tiny/checkpoints").iterdir())


def manifest() -> dict[str, object]:
    return json.loads(Path("runs/tiny/manifest.json").read_text())


def reference(file: Path) -> str:
    """The adapter of a run that nothing disturbs."""
    return str(fedloom("run", file, "--out", "reference", "--json").json["adapter_sha256"])


def test_one_interrupt_finishes_the_round_and_saves(write) -> None:
    file = write(**OWN)
    run = Process("run", file, SLOW=0.1)
    run.wait_for("round 1/4")
    run.wait_for("pass")  # of the second round
    run.process.send_signal(signal.SIGINT)
    done = run.end()
    assert done.code == 130
    assert "finishing the round; press Ctrl-C again to stop at once" in done.err
    assert "stopped; go on with: fedloom resume runs/tiny" in done.err
    assert "2 of 4 rounds" in done.out and "Traceback" not in done.err
    assert checkpoints()[-1] == "round-000002" and manifest()["status"] == "stopped"

    resumed = fedloom("resume", "runs/tiny", "--json")
    assert (resumed.code, resumed.json["status"]) == (0, "finished")
    assert resumed.json["adapter_sha256"] == reference(file)


def test_two_interrupts_stop_at_once_and_the_run_can_go_on(write) -> None:
    file = write(**OWN)
    run = Process("run", file, SLOW=0.5)  # a round of 4 steps takes seconds: it cannot end between the two
    run.wait_for("round 1/4")
    run.wait_for("pass")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("finishing the round")
    run.process.send_signal(signal.SIGINT)
    done = run.end()
    assert done.code == 130
    assert done.err.rstrip().endswith("interrupted") and "Traceback" not in done.err
    assert checkpoints()[-1] == "round-000001" and manifest()["status"] == "stopped"

    resumed = fedloom("resume", "runs/tiny", "--json")
    assert resumed.json["adapter_sha256"] == reference(file)


def test_a_killed_run_goes_on(write) -> None:
    file = write(**OWN)
    run = Process("run", file, SLOW=0.05)
    run.wait_for("round 2/4")
    run.process.kill()
    assert run.end().code == -signal.SIGKILL
    assert fedloom("report", "runs/tiny").code == 0
    assert fedloom("resume", "runs/tiny", "--json").json["adapter_sha256"] == reference(file)


def test_a_run_is_used_by_one_process_but_others_may_look(write) -> None:
    run = Process("run", write(**OWN), SLOW=0.2)
    try:
        run.wait_for("round 1/4")
        done = fedloom("resume", "runs/tiny")
        assert done.code == 1
        assert "runs/tiny: another process is using this run. Wait for it to end" in done.error
        assert fedloom("eval", "runs/tiny", "--round", 1, "--json").json["round"] == 1
        assert run.process.poll() is None
    finally:
        run.process.kill()
        run.end()


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "state.safetensors").write_bytes(b"\0" * 64),
        lambda folder: (folder / "state.json").write_text('{"round": 2'),
        lambda folder: (folder / "state.json").unlink(),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(write, harm) -> None:
    file = write(**OWN, federation__early_stopping={"patience": 1, "min_delta": 100.0})
    assert fedloom("run", file, "--json").json["rounds_done"] == 2
    Path("runs/tiny/manifest.json").write_text(json.dumps(manifest() | {"status": "running"}))
    harm(Path("runs/tiny/checkpoints/round-000002"))
    for verb in ("resume", "eval"):
        done = fedloom(verb, "runs/tiny")
        assert done.code == 1
        assert "runs/tiny/checkpoints/round-000002: the checkpoint of round 2 is damaged" in done.error
        assert "Delete that folder to go on from the one before" in done.error
    shutil.rmtree("runs/tiny/checkpoints/round-000002")
    assert fedloom("resume", "runs/tiny", "--json").json["adapter_sha256"] == reference(file)


@pytest.mark.parametrize(
    ("passes", "tensorboard"), [(9, True), *(pytest.param(k, False, marks=pytest.mark.slow) for k in (2, 13))]
)
def test_a_full_disk_is_one_message_and_the_run_goes_on_later(write, passes, tensorboard) -> None:
    """No file can grow beyond 1000 bytes from some moment on: in the first evaluation, in the second round, in the third."""
    file = write(**OWN, tensorboard=tensorboard)
    done = Process("run", file, FULL_AFTER=passes).end()
    assert done.code == 1
    assert "cannot be written: File too large" in done.error or "could not be saved: File too large" in done.error
    assert "make room and run `fedloom resume`".capitalize() in done.error
    assert not [name for name in checkpoints() if "tmp" in name]

    before = checkpoints()
    resumed = fedloom("resume", "runs/tiny", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["adapter_sha256"] == reference(file)
    assert set(before) <= set(checkpoints())
    for name in ("metrics.jsonl", "events.jsonl", "clients.jsonl"):
        assert all(map(json.loads, Path("runs/tiny", name).read_text().splitlines()))


def test_records_that_were_cut_off_are_mended_and_a_full_log_is_not_told_twice(write) -> None:
    file = write(**OWN)
    run = Process("run", file, SLOW=0.05)
    run.wait_for("round 1/4")
    run.process.kill()
    run.end()
    with Path("runs/tiny/events.jsonl").open("a") as events, Path("runs/tiny/log.txt").open("a") as log:
        events.write('{"time": "2026-01-')
        log.write("." * 2000)
    done = Process("resume", "runs/tiny", FULL_AFTER=3).end()
    assert done.code == 1 and "File too large" in done.error
    assert fedloom("resume", "runs/tiny", "--json").json["adapter_sha256"] == reference(file)
    assert all(map(json.loads, Path("runs/tiny/events.jsonl").read_text().splitlines()))


def test_a_full_disk_is_no_failure_of_a_client(write) -> None:
    """A client's own state cannot be saved: the run stops, even where failing clients are dropped."""
    changes = {"local__optimizer_state": "keep", "federation__on_failure": "drop"}
    file = write(**OWN, **changes)
    done = Process("run", file, FULL_AFTER=8).end()
    assert done.code == 1 and "the state of client 'topic-" in done.error and "File too large" in done.error
    resumed = fedloom("resume", "runs/tiny", "--json")
    assert resumed.json["adapter_sha256"] == reference(file)
    records = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert all(record.get("dropped", 0) == 0 for record in records)


# --- training that diverges ---


def test_a_loss_that_is_not_finite_names_client_step_and_rows(write) -> None:
    done = fedloom("run", write(local__optimizer="sgd", local__lr=1e30))
    assert done.code == 1
    for words in ("client 'topic-", "round 1", "at step 2 of 4", "table rows [", "Lower `local.lr`"):
        assert words in done.error, words
    assert manifest()["status"] == "failed"
    assert "the loss was" in Path("runs/tiny/report.html").read_text()


def test_when_every_client_diverges_dropping_does_not_help(write) -> None:
    done = fedloom("run", write(local__optimizer="sgd", local__lr=1e30, federation__on_failure="drop"))
    assert done.code == 1 and "every client of round 1 failed" in done.error and "at step 2 of 4" in done.error


@pytest.mark.parametrize(("config", "held_out"), [(LANGUAGE, 0.1), (LANGUAGE, 0.0), (CLASSIFY, 0.1)])
def test_a_model_that_diverges_in_its_last_step_is_no_fault_of_ours(write, held_out, config) -> None:
    """Every loss in training is finite, and what comes out is not."""
    changes = {"local__optimizer": "sgd", "local__lr": 3e38, "local__steps": 1, "data__held_out": held_out}
    done = fedloom("run", write(config, **changes))
    assert done.code == 1
    assert "client '" in done.error and "diverged" in done.error and "local.lr" in done.error
    assert checkpoints() == ["round-000000"]


@pytest.mark.parametrize("grouping", ["grouped", "in_place"])
@pytest.mark.parametrize("policy", ["stop", "drop"])
def test_a_users_model_that_gives_nan_for_one_client(write, policy, grouping) -> None:
    changes = {"model__path": "own:spoiled", "data__held_out": 0.0, "data__validation": 0.0}
    file = write(**changes, federation__on_failure=policy, local__grouping=grouping)
    done = fedloom("run", file, "--json")
    if policy == "stop":
        assert done.code == 1
        assert "client 'topic-2', round 1: the loss was nan at step 1 of 4, on table rows [" in done.error
        return
    assert done.code == 0, done.err
    records = [json.loads(line) for line in Path("runs/tiny/clients.jsonl").read_text().splitlines()]
    assert {r["client"] for r in records if r["status"] == "dropped"} == {"topic-2"}
    assert {r["client"] for r in records if r["status"] == "ok"} == {"topic-0", "topic-1", "topic-3"}
    assert "1 dropped" in done.err
