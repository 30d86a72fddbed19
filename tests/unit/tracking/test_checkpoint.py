"""Checkpoints are whole or absent, verified, and kept by rule."""

import subprocess
import sys
import textwrap

import pytest
import torch

from fedloom.config.schema import Checkpoints
from fedloom.errors import CheckpointError, RunError
from fedloom.local.store import ClientStore
from fedloom.tracking.checkpoint import CheckpointFolder, Progress
from fedloom.tracking.rundir import RunDir


def progress(round, **changes):
    return Progress(
        round, torch.randn(8), {"m": torch.ones(3)}, totals={"tokens": round}, positions={"a": 5}, **changes
    )


def test_comes_back_bit_for_bit(tmp_path):
    folder = CheckpointFolder(tmp_path / "c", Checkpoints())
    saved = progress(3, best_round=2, best_value=0.1, stale=1, seconds=1.5)
    folder.save(saved)
    loaded = folder.load(3)
    assert torch.equal(loaded.w, saved.w) and torch.equal(loaded.server["m"], saved.server["m"])
    assert {k: v for k, v in vars(loaded).items() if k not in ("w", "server")} == {
        k: v for k, v in vars(saved).items() if k not in ("w", "server")
    }


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Checkpoints(keep_best=False), [9, 10]),
        (Checkpoints(), [4, 9, 10]),
        (Checkpoints(keep_every=3, keep_last=1), [3, 4, 6, 9, 10]),
        (Checkpoints(keep_last=3, keep_best=False), [8, 9, 10]),
    ],
)
def test_keeps_what_it_says(tmp_path, keep, expected):
    folder = CheckpointFolder(tmp_path / "c", keep)
    for r in range(1, 11):
        folder.save(progress(r, best_round=min(r, 4)))
    assert folder.rounds() == expected


@pytest.mark.parametrize("damage", ["flip", "cut", "no numbers", "no vectors"])
def test_damage_is_named(tmp_path, damage):
    folder = CheckpointFolder(tmp_path / "c", Checkpoints())
    folder.save(progress(1))
    vectors, numbers = tmp_path / "c/round-000001/state.safetensors", tmp_path / "c/round-000001/state.json"
    content = bytearray(vectors.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        vectors.write_bytes(content)
    elif damage == "cut":
        vectors.write_bytes(content[:-4])
    else:
        (numbers if damage == "no numbers" else vectors).unlink()
    with pytest.raises(CheckpointError, match="round 1 is damaged"):
        folder.load(1)


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    (tmp_path / "c" / ".round-000007.99.tmp").mkdir(parents=True)
    folder = CheckpointFolder(tmp_path / "c", Checkpoints())
    folder.clean()
    assert folder.rounds() == [] and not list((tmp_path / "c").iterdir())


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A file-size limit makes the write fail part-way, as a full disk does."""
    script = textwrap.dedent("""
        import resource, signal, sys, torch
        from pathlib import Path
        from fedloom.config.schema import Checkpoints
        from fedloom.errors import CheckpointError
        from fedloom.tracking.checkpoint import CheckpointFolder, Progress
        folder = CheckpointFolder(Path(sys.argv[1]), Checkpoints())
        folder.save(Progress(1, torch.arange(10.0)))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            folder.save(Progress(2, torch.zeros(100_000)))
        except CheckpointError as error:
            print(error)
        print(folder.rounds(), folder.load(1).w.sum().item(), sorted(p.name for p in Path(sys.argv[1]).iterdir()))
    """)
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True, timeout=120
    )
    assert "round 2 could not be saved" in out.stdout and "newest whole checkpoint is of round 1" in out.stdout, (
        out.stderr
    )
    assert "[1] 45.0 ['round-000001']" in out.stdout


def test_store_sees_the_state_as_it_was(tmp_path):
    store = ClientStore(tmp_path)
    assert store.load("a/../b", 5) is None
    for r in (1, 3, 6):
        store.save("a/../b", r, {"m": torch.full((2,), float(r))})
    seen = [store.load("a/../b", before) for before in (1, 2, 3, 4, 6, 7)]
    assert [None if s is None else s["m"][0].item() for s in seen] == [None, 1, 1, 3, 3, 6]
    assert all(tmp_path in p.parents for p in tmp_path.rglob("*.safetensors"))


def test_store_forgets_what_no_checkpoint_needs(tmp_path):
    store = ClientStore(tmp_path)
    for r in range(1, 8):
        store.keep_from = max(0, r - 3)
        store.save("x", r, {"m": torch.zeros(1)})
    assert store.load("x", 5) is not None, "round 4 can still be resumed from"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4


def test_run_directory_is_never_overwritten(tmp_path):
    made = [RunDir.create(tmp_path / "r", "a: 1", {"n": n}) for n in range(3)]
    assert [d.path.name for d in made] == ["r", "r-2", "r-3"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r", "r-2", "r-3"]
    for d in made:
        d.close()


def test_run_directory_in_use_is_refused(tmp_path):
    first = RunDir.create(tmp_path / "r", "a: 1", {})
    script = (
        f"from pathlib import Path; from fedloom.tracking.rundir import RunDir; RunDir.open(Path({str(first.path)!r}))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "another process is using this run" in out.stderr
    first.close()
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 0


def test_no_run_here(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        RunDir.open(tmp_path)


def test_rewind_cuts_records(tmp_path):
    run = RunDir.create(tmp_path / "r", "", {})
    run.metrics({"round": 1})
    positions = run.positions()
    run.metrics({"round": 2})
    run.clients([{"round": 2}])
    run.rewind(positions)
    assert (run.path / "metrics.jsonl").read_text() == '{"round": 1}\n'
    assert (run.path / "clients.jsonl").read_text() == ""
    run.close()
