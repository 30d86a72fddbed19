"""The main job on a tiny model of a user's own: same seed same bytes, resumption, failures, what comes out."""

import json

import numpy as np
import peft
import pytest
import torch
from project import CLASSIFY, LANGUAGE, experiment

from fedloom import api
from fedloom.errors import ClientError, FedloomError, RunError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))


def records(run, name="metrics.jsonl"):
    return [json.loads(line) for line in (run.path / name).read_text().splitlines()]


def final_vector(run):
    opened = api.open_run(run.path)
    return opened.progress.w


def test_a_users_own_model_and_data_train(tmp_path):
    run = api.run(experiment(tmp_path / "mine", LANGUAGE, federation__rounds=6), tmp_path / "runs")
    assert run.finished and run.manifest["status"] == "finished"
    assert run.manifest["after"]["eval_loss"] < 0.8 * run.manifest["before"]["eval_loss"]
    found = {p.name for p in run.path.iterdir()} - {".lock"}
    assert found >= {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "clients.jsonl",
        "log.txt",
        "checkpoints",
        "adapter",
        "report.html",
        "README.md",
    }
    rounds = records(run)
    assert [r["round"] for r in rounds] == list(range(7))
    expected = {
        "round",
        "clients",
        "dropped",
        "train_loss",
        "eval_loss",
        "bytes_up",
        "bytes_down",
        "tokens",
        "seconds",
        "virtual_seconds",
        "peak_memory_bytes",
    }
    assert set(rounds[1]) >= expected


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LANGUAGE, {}),
        (LANGUAGE, {"federation__clients_per_round": 2, "local__optimizer_state": "keep"}),
        (LANGUAGE, {"adapter__dropout": 0.2, "local__accumulate": 2, "local__clip": 0.1}),
        (CLASSIFY, {"local__grouping": "in_place"}),
        (CLASSIFY, {"local": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "epochs": 1, "batch_size": 5}}),
    ],
)
def test_same_seed_same_bytes_whatever_interrupts(tmp_path, config, changes):
    """Twice alone; stopped after every round and resumed: one adapter."""
    loaded = experiment(tmp_path / "mine", config, **changes)
    alone = api.run(loaded, tmp_path / "runs")
    again = api.run(loaded, tmp_path / "runs")
    asked = {"rounds": 0}

    def stop() -> bool:
        asked["rounds"] += 1
        return asked["rounds"] % 3 == 0

    stopped = api.run(loaded, tmp_path / "runs", stop_asked=stop)
    assert not stopped.finished and stopped.manifest["status"] == "stopped"
    while not stopped.finished:
        stopped = api.resume(stopped.path, stop_asked=stop)
    assert alone.manifest["adapter_sha256"] == again.manifest["adapter_sha256"] == stopped.manifest["adapter_sha256"]
    strip = [{k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in records(alone)]
    assert strip == [
        {k: v for k, v in r.items() if k not in ("seconds", "peak_memory_bytes")} for r in records(stopped)
    ]
    assert records(alone, "clients.jsonl") == records(stopped, "clients.jsonl")


def test_another_seed_other_bytes(tmp_path):
    one, two = (api.run(experiment(tmp_path / "mine", LANGUAGE, seed=s), tmp_path / "runs") for s in (0, 1))
    assert one.manifest["adapter_sha256"] != two.manifest["adapter_sha256"]
    assert one.manifest["partition_digest"] != two.manifest["partition_digest"]


@pytest.mark.parametrize("config", [LANGUAGE, CLASSIFY])
def test_grouping_and_group_size_change_nothing(tmp_path, config):
    def vector(**changes):
        return final_vector(
            api.run(
                experiment(tmp_path / "mine", config, local__optimizer="sgd", local__lr=0.02, **changes),
                tmp_path / "runs",
            )
        )

    reference = vector(local__grouping="in_place")
    moved = (reference - api.prepare(experiment(tmp_path / "mine", config)).initial).abs().max()
    assert moved > 1e-3
    for size in (1, 2, 4):
        torch.testing.assert_close(
            vector(local__grouping="grouped", engine__group_size=size), reference, rtol=0, atol=1e-5
        )


def test_the_wire_changes_nothing_and_its_bytes_are_exact(tmp_path):
    plain = api.run(experiment(tmp_path / "mine", LANGUAGE), tmp_path / "runs")
    wired = api.run(experiment(tmp_path / "mine", LANGUAGE, engine__wire=True), tmp_path / "runs")
    assert plain.manifest["adapter_sha256"] == wired.manifest["adapter_sha256"]
    for key in ("bytes_up", "bytes_down"):
        assert [r.get(key) for r in records(plain)] == [r.get(key) for r in records(wired)]


@pytest.mark.parametrize("config", [LANGUAGE, CLASSIFY])
def test_plain_peft_gives_the_same_logits(tmp_path, config):
    run = api.run(experiment(tmp_path / "mine", config), tmp_path / "runs")
    opened = api.open_run(run.path)
    prepared = opened.prepared
    prepared.binding.load(opened.progress.w)
    ids = torch.tensor([[5, 9, 12, 30], [7, 8, 0, 0]])
    mask = (ids > 0).long()
    ours = prepared.binding.model(input_ids=ids, attention_mask=mask).logits

    import importlib.util

    spec = importlib.util.spec_from_file_location("own", tmp_path / "mine" / "own.py")
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    torch.manual_seed(999)
    builder = own.language_model if config is LANGUAGE else own.classifier
    base, _ = builder(prepared.labels)
    base.config.pad_token_id = 0
    theirs = (
        peft.PeftModel.from_pretrained(base, run.path / "adapter").eval()(input_ids=ids, attention_mask=mask).logits
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert "mine" not in (run.path / "adapter" / "adapter_config.json").read_text()


def test_yardsticks_place_the_run(tmp_path):
    run = api.run(
        experiment(tmp_path / "mine", LANGUAGE, federation__yardsticks=["local", "central"], federation__rounds=5),
        tmp_path / "runs",
    )
    after = {
        n: json.loads((run.path / "yardsticks" / n / "manifest.json").read_text())["after"]["eval_loss"]
        for n in ("local", "central")
    }
    assert run.manifest["after"]["eval_loss"] < after["local"]
    assert after["central"] < run.manifest["before"]["eval_loss"]
    local = [json.loads(x) for x in (run.path / "yardsticks/local/clients.jsonl").read_text().splitlines()]
    own = [r["eval_loss"] for r in local if r.get("evaluated") == "held_out" and r["round"] == 5]
    assert len(own) == 4 and np.mean(own) == pytest.approx(after["local"])
    assert all(r.get("bytes_up", 0) == 0 for r in local)
    rounds = [json.loads(x) for x in (run.path / "yardsticks/central/metrics.jsonl").read_text().splitlines()]
    assert sum(r.get("tokens", 0) for r in rounds) == pytest.approx(
        sum(r.get("tokens", 0) for r in records(run)), rel=0.05
    )


def test_central_is_one_client_with_all_rows(tmp_path):
    """FedAvg over one client that holds everything, with a cohort's steps, is central training: K = 1 is no special case."""
    changes = {"data__partition": {"kind": "iid", "clients": 1}, "federation__yardsticks": ["central"]}
    run = api.run(experiment(tmp_path / "mine", LANGUAGE, **changes), tmp_path / "runs")
    central = json.loads((run.path / "yardsticks/central/manifest.json").read_text())
    assert central["after"]["eval_loss"] == pytest.approx(run.manifest["after"]["eval_loss"], rel=0.2)


def test_a_bag_of_words_trains_too(tmp_path):
    """A model that is no transformers model, its head learnt whole."""
    changes = {
        "model__path": "own:bag",
        "adapter": {"kind": "lora", "r": 2, "targets": ["hidden"], "modules_to_save": ["classifier"]},
    }
    run = api.run(
        experiment(tmp_path / "mine", CLASSIFY, local__lr=0.05, federation__rounds=5, **changes), tmp_path / "runs"
    )
    assert run.manifest["after"]["eval_loss"] < run.manifest["before"]["eval_loss"]
    assert {t["name"].split(".")[-1] for t in run.manifest["trainable"]["tensors"]} == {"weight", "bias"}


def test_full_fine_tuning(tmp_path):
    run = api.run(experiment(tmp_path / "mine", CLASSIFY, adapter={"kind": "full"}), tmp_path / "runs")
    assert run.manifest["trainable"]["n"] == run.manifest["trainable"]["model_parameters"]
    assert run.manifest["grouping"] == "in_place"
    assert (run.path / "adapter" / "model.safetensors").exists()


def test_early_stopping_and_the_best_adapter(tmp_path):
    changes = {
        "federation__early_stopping": {"patience": 2},
        "checkpoints": {"adapter": "best"},
        "local__lr": 3.0,
        "federation__rounds": 12,
    }
    run = api.run(experiment(tmp_path / "mine", LANGUAGE, **changes), tmp_path / "runs")
    rounds = records(run)
    losses = [r["eval_loss"] for r in rounds[1:]]
    best = int(np.argmin(losses)) + 1
    assert run.manifest["best"]["round"] == best and rounds[-1]["round"] == best + 2 < 12
    assert api.open_run(run.path, best).progress.round == best


def poison(monkeypatch, kind):
    """The client of topic-2 fails: its loss becomes NaN, or its batch raises."""
    from fedloom.tasks.causal_lm import CausalLM

    losses, collate = CausalLM.losses, CausalLM.collate

    def bad_losses(self, model, batch):
        out = losses(self, model, batch)
        hit = torch.tensor(
            [
                bool((batch.inputs["input_ids"].view(len(batch.rows), -1)[k] == 4 + 37).any())
                for k in range(len(batch.rows))
            ]
        )
        return out * torch.where(hit, float("nan"), 1.0)

    def bad_collate(self, table, rows):
        codes, names = table.codes("topic")
        if any(len(r) and names[codes[r[0]]] == "topic-2" for r in rows):
            raise RuntimeError("a broken disk")
        return collate(self, table, rows)

    if kind == "nan":
        monkeypatch.setattr(CausalLM, "losses", bad_losses)
    else:
        monkeypatch.setattr(CausalLM, "collate", bad_collate)


def test_a_nan_loss_names_client_step_and_batch(tmp_path, monkeypatch):
    poison(monkeypatch, "nan")
    with pytest.raises(ClientError) as caught:
        api.run(experiment(tmp_path / "mine", LANGUAGE, data__held_out=0.0, data__validation=0.0), tmp_path / "runs")
    assert caught.value.client == "topic-2" and caught.value.round >= 1
    assert "the loss was nan at step" in str(caught.value) and "table rows [" in str(caught.value)
    assert json.loads((tmp_path / "runs/tiny/manifest.json").read_text())["status"] == "failed"
    assert (tmp_path / "runs/tiny/report.html").exists()


@pytest.mark.parametrize("kind", ["nan", "raise"])
@pytest.mark.parametrize("grouping", ["grouped", "in_place"])
def test_a_failing_client_is_dropped_and_the_rest_reweighted(tmp_path, monkeypatch, kind, grouping):
    """What remains is the mean over the others, as if the failing client had not been there."""
    changes = {
        "data__held_out": 0.0,
        "data__validation": 0.0,
        "federation__on_failure": "drop",
        "local__grouping": grouping,
        "federation__rounds": 2,
        "local__steps": 8,
    }
    changes |= {"local__optimizer": "sgd", "local__lr": 0.1}
    loaded = experiment(tmp_path / "mine", LANGUAGE, **changes)
    poison(monkeypatch, kind)
    run = api.run(loaded, tmp_path / "runs")
    dropped = [r for r in records(run, "clients.jsonl") if r.get("status") == "dropped"]
    assert {r["client"] for r in dropped} == {"topic-2"} and len(dropped) == 2
    assert ("the loss was nan at step" if kind == "nan" else "a broken disk") in dropped[0]["reason"]
    assert [r["dropped"] for r in records(run)[1:]] == [1, 1]
    monkeypatch.undo()
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path / "cache"))
    rest = experiment(tmp_path / "mine", LANGUAGE, **changes, data__where={"topic": ["topic-0", "topic-1", "topic-3"]})
    without = api.run(rest, tmp_path / "runs")
    names = {r["client"] for r in records(without, "clients.jsonl")}
    assert names == {"topic-0", "topic-1", "topic-3"}
    assert records(run)[1]["train_loss"] == pytest.approx(records(without)[1]["train_loss"], rel=0.3)


def test_every_client_failing_stops_the_run(tmp_path, monkeypatch):
    from fedloom.tasks.causal_lm import CausalLM

    monkeypatch.setattr(
        CausalLM, "losses", lambda self, model, batch: torch.full((len(batch.rows),), float("nan"), requires_grad=True)
    )
    with pytest.raises(RunError, match="every client of round 1 failed"):
        api.run(experiment(tmp_path / "mine", LANGUAGE, federation__on_failure="drop"), tmp_path / "runs")


def test_the_base_model_is_the_same_whatever_is_learnt_of_it(tmp_path):
    base = experiment(tmp_path / "mine", LANGUAGE)
    other = experiment(tmp_path / "mine", LANGUAGE, adapter={"kind": "full"})
    assert api.prepare(base).base == api.prepare(other).base


def test_another_base_model_is_refused(tmp_path):
    run = api.run(experiment(tmp_path / "mine", LANGUAGE), tmp_path / "runs")
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("own:language_model", "own:other_language_model"))
    with pytest.raises(RunError, match="`base_model_digest` is not what it was"):
        api.open_run(run.path)
    config.write_text(
        config.read_text().replace("own:other_language_model", "own:language_model").replace("r: 2", "r: 3")
    )
    with pytest.raises(RunError, match="`trainable` is not what it was"):
        api.open_run(run.path)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    run = api.run(experiment(tmp_path / "mine", LANGUAGE), tmp_path / "runs")
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}
    assert api.resume(run.path).finished
    assert before == {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_forced_group_on_a_full_model_says_why(tmp_path):
    with pytest.raises(FedloomError):
        experiment(tmp_path / "mine", CLASSIFY, adapter={"kind": "full"}, local__grouping="grouped")
