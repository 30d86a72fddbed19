"""The comparison of a sweep: its numbers by hand, and its page whole, self-contained and true."""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_fixtures import make_run
from test_report_page import Page

from fedloom.cli.sweep import _print_summary
from fedloom.tracking.report.wording import number
from fedloom.tracking.sweep import Goal, cells, read_run, summarise, write_comparison
from fedloom.tracking.sweep.figures import curves_figure
from fedloom.tracking.sweep.results import RunResult, differing, worst_tenth
from fedloom.tracking.sweep.statistics import estimate, t_quantile

METRIC = "eval_accuracy"
GOAL = Goal(METRIC, 0.6)


def result(variant, seed, final, **changes):
    return RunResult(f"{variant}--seed-{seed}", variant, seed, "finished", final=final, **changes)


def fake_sweep(folder: Path, variants: int = 3, seeds: int = 3, goal: Goal | None = GOAL, **changes):
    """Run directories as runs leave them, and their summary."""
    names = [f"method_{k}" for k in range(variants)]
    runs = []
    for k, name in enumerate(names):
        for seed in range(seeds):
            path = folder / "runs" / f"{name}--seed-{seed}"
            noise = 0.15 * math.sin(13.0 * seed + k)
            algorithm = "local" if k == variants - 1 else "fedavg"
            make_run(
                path,
                end=1.4 + 0.03 * ((7 * k) % variants) + noise,
                seed=seed,
                sparse=k % 7 == 5,
                algorithm=algorithm,
                **changes,
            )
            manifest = json.loads((path / "manifest.json").read_text())
            (path / "manifest.json").write_text(json.dumps(manifest | {"metric": METRIC}))
            runs.append(read_run(path, name, seed, METRIC, goal, manifest["status"]))
    return summarise("made-up", METRIC, goal, {name: f"algorithm: {name}" for name in names}, runs)


# --- the numbers ---


@pytest.mark.parametrize(
    ("degrees", "value"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (30, 2.0423), (120, 1.9799)]
)
def test_quantiles_are_those_of_the_printed_tables(degrees, value):
    assert t_quantile(degrees) == pytest.approx(value, abs=5e-5)


def test_an_interval_by_hand():
    # mean 3; s^2 = (4 + 1 + 1 + 4) / 4 = 2.5; half = 2.7764 * sqrt(2.5 / 5) = 1.9632
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3 and found.n == 5
    assert found.half == pytest.approx(1.9632, abs=1e-4)
    assert estimate([2.0]) == (2.0, None, None, 1) and estimate([]) is None


def test_the_worst_tenth_is_the_worst_in_the_metrics_own_sense():
    values = [k / 20 for k in range(20)]
    assert worst_tenth(values, "eval_accuracy") == pytest.approx(0.025)
    assert worst_tenth(values, "eval_loss") == pytest.approx(0.925)
    assert worst_tenth([0.3, 0.7, 0.5], "eval_accuracy") == 0.3
    assert worst_tenth([], "eval_loss") is None


def test_differences_are_taken_seed_by_seed():
    """The seeds differ much, the two methods little and always the same way: only the paired interval can tell."""
    base = [result("a", s, v) for s, v in enumerate((0.50, 0.60, 0.70))]
    other = [result("b", s, v) for s, v in enumerate((0.52, 0.63, 0.72))]
    sweep = summarise("s", METRIC, None, {"a": "", "b": ""}, [*base, *other])
    best, second = sweep.variants
    assert (best.name, best.verdict, second.verdict) == ("b", "better", "baseline")
    d = [0.02, 0.03, 0.02]
    assert best.difference.mean == pytest.approx(statistics.fmean(d))
    assert best.difference.half == pytest.approx(4.30265 * statistics.stdev(d) / math.sqrt(3), rel=1e-4)
    assert "overlaps with that of a" in sweep.headline()
    assert second.difference is None


def test_a_difference_is_of_the_seeds_both_have():
    base = [result("a", 0, 0.5), result("a", 1, 0.9)]
    other = [result("b", 0, 0.6), RunResult("b--seed-1", "b", 1, "failed", "it broke")]
    sweep = summarise("s", METRIC, None, {"a": "", "b": ""}, [*base, *other])
    b = next(v for v in sweep.variants if v.name == "b")
    assert b.difference.n == 1 and b.difference.mean == pytest.approx(0.1) and b.verdict == "one seed"


@pytest.mark.parametrize(
    ("values", "verdict"), [((0.5, 0.6), "the same"), ((0.4, 0.5), "worse"), ((0.6, 0.55), "not told apart")]
)
def test_verdicts(values, verdict):
    runs = [result("a", 0, 0.5), result("a", 1, 0.6), *(result("b", s, v) for s, v in enumerate(values))]
    sweep = summarise("s", METRIC, None, {"a": "", "b": ""}, runs)
    assert next(v for v in sweep.variants if v.name == "b").verdict == verdict


def test_those_that_end_alike_share_the_headline():
    runs = [result(name, 0, final) for name, final in (("a", 0.6), ("b", 0.5), ("c", 0.6), ("d", 0.6))]
    headline = summarise("s", METRIC, None, dict.fromkeys("abcd", ""), runs).headline()
    assert headline.startswith("a, c and d end with the best eval accuracy: 60.0%")
    assert summarise("s", METRIC, None, {"a": "", "b": ""}, runs[:2]).headline().startswith("a ends with")


def test_for_a_loss_lower_comes_first_and_is_better():
    runs = [result("a", s, 1.0 + s) for s in range(3)] + [result("b", s, 0.5 + s) for s in range(3)]
    sweep = summarise("s", "eval_loss", None, {"a": "", "b": ""}, runs)
    assert [(v.name, v.verdict) for v in sweep.variants] == [("b", "better"), ("a", "baseline")]


def test_one_seed_has_no_interval_and_says_so(tmp_path):
    sweep = fake_sweep(tmp_path, seeds=1)
    assert all(v.final.low is None for v in sweep.variants)
    assert "with one seed" in sweep.headline()
    page = Page(write_comparison(sweep, tmp_path).read_text())
    assert "there are no intervals, and small differences mean nothing" in page.text and "±" not in page.text
    assert "ticks" not in page.text and "`" not in page.text


def test_rounds_and_bytes_to_the_target_are_read_off_the_records(tmp_path):
    path = make_run(tmp_path / "a--seed-0", rounds=6)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    goal = Goal(METRIC, 0.5)
    run = read_run(path, "a", 0, METRIC, goal, "finished")
    first = next(r for r in records if r[METRIC] >= 0.5)["round"]
    sent = sum(r.get("bytes_up", 0) + r.get("bytes_down", 0) for r in records if r["round"] <= first)
    assert run.reached == (first, sent, True, None) and 0 < first < 6
    assert run.up == statistics.fmean(r["bytes_up"] for r in records[1:])
    sweep = summarise("s", METRIC, goal, {"a": ""}, [run])
    assert str(first) in cells(sweep, sweep.variants[0])
    never = read_run(path, "a", 0, METRIC, Goal(METRIC, 2.0), "finished")
    assert never.reached is None
    below = read_run(path, "a", 0, "eval_loss", Goal("eval_loss", 2.5), "finished").reached
    assert below.round == next(r for r in records if r["eval_loss"] <= 2.5)["round"]


def test_a_target_seen_only_at_the_end_is_an_upper_bound(tmp_path):
    run = read_run(make_run(tmp_path / "a--seed-0", sparse=True), "a", 0, METRIC, Goal(METRIC, 0.5), "finished")
    assert run.reached.round == 6 and not run.reached.exact
    sweep = summarise("s", METRIC, Goal(METRIC, 0.5), {"a": ""}, [run])
    assert "≤ 6" in cells(sweep, sweep.variants[0])


def test_clients_are_judged_by_their_last_record(tmp_path):
    path = make_run(tmp_path / "a--seed-0", clients=20)
    own = [json.loads(line) for line in (path / "clients.jsonl").read_text().splitlines()]
    own = sorted(r[METRIC] for r in own if r.get("evaluated") == "own" and r["round"] == 6)
    run = read_run(path, "a", 0, METRIC, None, "finished")
    assert run.own == pytest.approx(statistics.fmean(own)) and run.worst == pytest.approx(statistics.fmean(own[:2]))


def test_other_rows_or_weights_than_the_baselines_are_told():
    same = {"data": "d", "partition": "p", "base model": "m"}
    runs = [result("a", 0, 0.5, digests=same), result("b", 0, 0.6, digests=same | {"partition": "other"})]
    (warning,) = summarise("s", METRIC, None, {"a": "", "b": ""}, runs).warnings
    assert warning.startswith("b had its rows divided over clients in another way")


def test_rows_pooled_on_purpose_are_no_other_partition(tmp_path):
    def digests(name):
        path = make_run(tmp_path / f"{name}--seed-0")
        manifest = json.loads((path / "manifest.json").read_text())
        changed = manifest | {"algorithm": {"name": name}, "partition_digest": f"that of {name}"}
        (path / "manifest.json").write_text(json.dumps(changed))
        return read_run(path, name, 0, METRIC, None, "finished")

    runs = [digests(name) for name in ("fedavg", "central", "fedprox")]
    (warning,) = summarise("s", METRIC, None, {run.variant: "" for run in runs}, runs).warnings
    assert warning.startswith("fedprox had its rows divided")


def test_differing_names_the_keys():
    one = "name: a\nlocal:\n  lr: 0.1\n  steps: 2\n"
    assert differing(one, one) == []
    assert differing(one, "name: a\nlocal:\n  lr: 0.2\n  clip: 1.0\n") == ["local.lr", "local.steps", "local.clip"]


# --- forward passes ---


def spending(folder: Path, variant: str, each: float | None, **changes):
    """A run that takes so many forward passes a round; none are told where that is None."""
    path = make_run(folder / f"{variant}--seed-0", rounds=4, **changes)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for record in records[1:]:
        record.pop("forward_equivalents")
        record |= {} if each is None else {"forward_equivalents": each}
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return read_run(path, variant, 0, METRIC, None, "finished")


def test_forward_passes_are_added_up_to_where_a_run_was_judged(tmp_path):
    assert spending(tmp_path, "a", 30).curve.passes == (0, 30, 60, 90, 120)
    assert spending(tmp_path, "b", 30, sparse=True).curve.passes == (0, 120)
    assert spending(tmp_path, "old", None).curve.passes == ()
    run = spending(tmp_path, "c", 50)
    sweep = summarise("s", METRIC, None, {"c": ""}, [run])
    assert [point.passes for point in sweep.variants[0].curve()] == [0, 50, 100, 150, 200]


@pytest.mark.parametrize(
    ("passes", "drawn", "ticks"),
    [
        ((30, 30, 30), "", ""),
        ((30, 30, None), "", ""),
        ((None, None, None), "", ""),
        ((30, 60, None), "ab", "0 50 100 150 200"),
        ((30, 40, 9000), "abc", "100 1,000 10,000"),  # by powers, where the least would be a line at zero
    ],
)
def test_curves_by_forward_passes_where_variants_take_different_numbers(passes, drawn, ticks, tmp_path):
    runs = [spending(tmp_path, name, each) for name, each in zip("abc", passes, strict=True)]
    sweep = summarise("s", METRIC, None, dict.fromkeys("abc", ""), runs)
    svg = curves_figure(sweep, "passes", by="passes")
    assert (svg is None) == (not drawn)
    if svg:
        title = re.search("<title>([^<]*)</title>", svg)[1]
        assert re.findall(r"\b([abc]) \d", title) == list(drawn) and "by forward passes" in title
        assert re.findall(r">(\d[\d,]*)</text>", svg) == ticks.split()
    page = Page(write_comparison(sweep, tmp_path).read_text())
    assert ("Eval accuracy by forward passes" in page.text) == bool(drawn)


# --- the page ---


def test_the_page_is_whole_self_contained_and_true(tmp_path):
    sweep = fake_sweep(tmp_path)
    path = write_comparison(sweep, tmp_path)
    text = path.read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img"}
    assert not re.findall(r"url\((?!#)", text) and str(tmp_path) not in text
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    pictures = re.findall(r"<svg[^>]*><title>[^<]{10,}</title>", text)
    assert len(pictures) == len(re.findall("<svg", text)) == 6
    best = sweep.variants[0]
    assert f"{best.name} ends with the best eval accuracy: {number(best.final.mean, METRIC)}" in page.text
    for variant in sweep.variants:
        for cell in cells(sweep, variant):
            assert cell in page.text
    stored = json.loads((tmp_path / "comparison.json").read_text())
    assert [v["name"] for v in stored["variants"]] == [v.name for v in sweep.variants]
    assert stored["variants"][0]["final"] == best.final._asdict()
    assert write_comparison(sweep, tmp_path).read_text() == text


def test_variants_go_by_their_own_names_and_methods_by_their_titles(tmp_path):
    """A class's name, such as FFALoRA, is for programmers."""
    both = {"name": "scaffold", "with": [{"name": "fedadam"}]}
    algorithms = {"mine": {"name": "ffa_lora"}, "both": both, "own": {"name": "my.methods:Own"}}
    runs = []
    for variant, algorithm in algorithms.items():
        path = make_run(tmp_path / f"{variant}--seed-0")
        manifest = json.loads((path / "manifest.json").read_text()) | {"algorithm": algorithm}
        (path / "manifest.json").write_text(json.dumps(manifest))
        runs.append(read_run(path, variant, 0, METRIC, None, "finished"))
    sweep = summarise("s", METRIC, None, dict.fromkeys(algorithms, ""), [*runs, RunResult("x", "x", 0)])
    text = Page(write_comparison(sweep, tmp_path).read_text()).text
    for shown in ("FFA-LoRA", "Stochastic controlled averaging with Adam at the server", "my.methods:Own", *algorithms):
        assert shown in text
    assert not re.search("FFALoRA|Scaffold|FedAdam", text)


def test_a_half_done_sweep_has_a_page_that_says_so(tmp_path):
    done = fake_sweep(tmp_path, variants=2, seeds=2).runs
    runs = [*done[:3], RunResult("method_1--seed-1", "method_1", 1, "failed", "client 'a': <b>the loss became NaN</b>")]
    runs += [RunResult(f"late--seed-{s}", "late", s) for s in range(2)]
    sweep = summarise("half", METRIC, None, {"method_0": "", "method_1": "", "late": ""}, runs)
    page = Page(write_comparison(sweep, tmp_path).read_text())
    assert "2 runs of 6 not finished yet" in page.text and "1 run failed, and is not counted" in page.text
    assert "client 'a': <b>the loss became NaN</b>" in page.text
    assert sweep.variants[-1].name == "late" and "0 of 2" in page.text and "1 of 2" in page.text


def test_a_sweep_in_which_nothing_has_finished(tmp_path):
    sweep = summarise("none", METRIC, Goal(METRIC, 0.5), {"a": ""}, [RunResult("a--seed-0", "a", 0, "failed", "no")])
    assert "No run has finished yet." in Page(write_comparison(sweep, tmp_path).read_text()).text


def test_names_are_text(tmp_path):
    name = "<script>alert(1)</script>"
    sweep = summarise(name, METRIC, None, {name: "x: <i>"}, [result(name, 0, 0.5), result(name, 1, 0.6)])
    page = Page(write_comparison(sweep, tmp_path).read_text())
    assert name in page.text and all(tag != "script" for tag, _ in page.tags)


def test_a_page_of_thirty_four_variants_stays_small(tmp_path):
    sweep = fake_sweep(tmp_path, variants=34, clients=4, rounds=5)
    path = write_comparison(sweep, tmp_path)
    page = Page(path.read_text())
    assert path.stat().st_size < 1_000_000
    assert (
        "27 other variants" in page.text
        and "Of 33 differences about 2 would be told apart by chance alone" in page.text
    )


def test_the_printed_table_keeps_a_name_on_one_line(tmp_path, capsys):
    names = ["fedavg", "fedavg-sgd-without-momentum", "spry-fedyogi"]
    runs = [RunResult(f"{name}--seed-0", name, 0) for name in names]
    _print_summary(summarise("s", METRIC, GOAL, dict.fromkeys(names, ""), runs), SimpleNamespace(folder=tmp_path))
    printed = capsys.readouterr().out
    assert "spry-fedyogi (0 of 1) " in printed and "fedavg-sgd-without-mome" in printed
