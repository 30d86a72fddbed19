"""Reading run directories, and the sentences and numbers made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from report_fixtures import make_run

from fedloom.errors import FedloomError, RunError
from fedloom.tracking.reading import RunArgumentError, RunFiles, read_records
from fedloom.tracking.report import summary, wording
from fedloom.tracking.report.drawing import spread_apart
from fedloom.tracking.report.partition_figures import partition_figure


def test_no_run_lists_runs_nearby(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "quickstart")
    make_run(tmp_path / "runs" / "other")
    with pytest.raises(RunArgumentError) as caught:
        RunFiles.open(tmp_path / "runs" / "quikstart")
    assert caught.value.exit_code == 2
    fix = caught.value.fix or ""
    assert fix.index("quickstart") < fix.index("other")
    assert "no such folder" in str(caught.value)


@pytest.mark.parametrize("bad", ["not json", "[1]", '{"a": 1'])
def test_damaged_line_before_the_last_is_an_error(tmp_path: Path, bad: str) -> None:
    run = make_run(tmp_path / "runs" / "x")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], bad, *lines[2:]]))
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2.*damaged"):
        RunFiles.open(run)


@pytest.mark.parametrize(("name", "text"), [("manifest.json", "{"), ("partition.json", "[]"), ("config.yaml", "a: [")])
def test_damaged_file_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    run = make_run(tmp_path / "runs" / "x")
    (run / name).write_text(text)
    with pytest.raises(FedloomError, match=name):
        RunFiles.open(run)


def test_cut_last_line_and_missing_file_are_remarked(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"round": 1}\n{"rou')
    records, remarks = read_records(file)
    assert records == [{"round": 1}]
    assert "a.jsonl is cut (line 2)" in remarks[0]
    assert read_records(tmp_path / "b.jsonl") == ([], ["b.jsonl is missing."])


def test_last_record_of_a_round_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"round": 6, "eval_loss": 9.0}\n')
    opened = RunFiles.open(run)
    assert opened.curve("eval_loss")[1][-1] == 9.0
    assert "round 6 more than once" in opened.remarks[0]


def test_reading_needs_no_torch() -> None:
    code = "import sys, fedloom.tracking.reading, fedloom.tracking.compare, fedloom.cli.report, fedloom.cli.compare;"
    code += "print([m for m in ('torch', 'matplotlib', 'transformers') if m in sys.modules])"
    source = Path(__file__).parents[3] / "src"
    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(source)},
        check=True,
    )
    assert found.stdout.strip() == "[]"


def _set(run: Path, **values: object) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | values))


@pytest.mark.parametrize(
    ("metric", "before", "after", "alone", "pooled", "sentence"),
    [
        ("eval_loss", 3.5, 1.52, 2.1, 1.45, "fell from 3.50 to 1.52; between ALONE (2.10) and POOLED (1.45)."),
        ("eval_loss", 3.5, 1.4, 2.1, 1.45, "fell from 3.50 to 1.40; better than ALONE (2.10) and POOLED (1.45)."),
        ("eval_loss", 3.5, 2.5, 2.1, 1.45, "fell from 3.50 to 2.50; worse than ALONE (2.10) and POOLED (1.45)."),
        ("eval_loss", 3.5, 1.8, 1.6, 2.0,
         "fell from 3.50 to 1.80; better than POOLED (2.00), worse than ALONE (1.60)."),
        ("eval_loss", 3.5, 1.501, 1.499, 1.4,
         "fell from 3.50 to 1.50; level with ALONE (1.50), worse than POOLED (1.40)."),
        ("eval_loss", 1.0, 2.0, None, None, "rose from 1.00 to 2.00."),
        ("eval_loss", 1.0, 1.001, None, None, "stayed at 1.00."),
        ("eval_accuracy", 0.4, 0.8, 0.6, 0.9, "rose from 40.0% to 80.0%; between ALONE (60.0%) and POOLED (90.0%)."),
        ("eval_accuracy", 0.4, 0.8, 0.9, None, "rose from 40.0% to 80.0%; worse than ALONE (90.0%)."),
    ],
)  # fmt: skip
def test_headline(
    tmp_path: Path, metric: str, before: float, after: float, alone: float | None, pooled: float | None, sentence: str
) -> None:
    run = make_run(tmp_path / "runs" / "x")
    _set(run, metric=metric, before={metric: before}, after={metric: after})
    for kind, value in (("local", alone), ("central", pooled)):
        if value is not None:
            _set(make_run(run / "yardsticks" / kind, algorithm=kind), after={metric: value})
    expected = sentence.replace("ALONE", "the clients alone").replace("POOLED", "all data pooled")
    moved, _, placed = expected.partition(";")
    label = "Eval loss" if metric == "eval_loss" else "Eval accuracy"
    placed = f";{placed}" if placed else "."
    assert summary.headline(RunFiles.open(run)) == f"{label} {moved.rstrip('.')} over 6 rounds{placed}"


def test_headline_without_evaluation_uses_the_training_loss(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x")
    _set(run, before={}, after={})
    records, _ = read_records(run / "metrics.jsonl")
    kept = [{k: v for k, v in r.items() if not k.startswith("eval_")} for r in records]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    assert summary.headline(RunFiles.open(run)).startswith("Training loss fell from ")


def test_round_zero_alone_is_no_result(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x", status="running")
    first = (run / "metrics.jsonl").read_text().splitlines()[0]
    (run / "metrics.jsonl").write_text(first + "\n")
    _set(run, after={"eval_loss": 3.5}, rounds_done=0)
    assert summary.headline(RunFiles.open(run)) == "No round has been finished yet."


def test_worst_tenth_follows_the_direction(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x", clients=40)
    low = summary.client_results(RunFiles.open(run))
    values = sorted((c.after or 0 for c in low.everyone), reverse=True)
    assert low.statistics[1].value == f"{sum(values[:4]) / 4:.2f}"
    assert low.shown[0].after == values[0]
    _set(run, metric="eval_accuracy")
    high = summary.client_results(RunFiles.open(run))
    assert high.shown[0].after == min(c.after or 0 for c in high.everyone)
    assert high.statistics[2].value == f"{100 * max(c.after or 0 for c in high.everyone):.1f}%"


def test_directions_are_the_evaluators() -> None:
    evaluator = pytest.importorskip("fedloom.evaluation.evaluator")
    names = [
        "loss",
        "perplexity",
        "accuracy",
        "f1",
        "macro_f1",
        "auc",
        "exact_match",
        "ndcg",
        "hit_rate",
        "mcc",
        "other",
    ]
    for name in (f"eval_{n}" for n in names):
        assert wording.lower_is_better(name) == evaluator.Evaluator.lower_is_better(name)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (wording.number(1.5234), "1.52"),
        (wording.number(0.8594), "0.859"),
        (wording.number(0.01234), "0.012"),
        (wording.number(12345.6), "12,346"),
        (wording.number(0.875, "eval_accuracy"), "87.5%"),
        (wording.number(float("nan")), "not finite"),
        (wording.number(None), "–"),
        (wording.size(999), "999 B"),
        (wording.size(1_843_200), "1.84 MB"),
        (wording.size(184e9), "184 GB"),
        (wording.duration(5.25), "5.2 s"),
        (wording.duration(59.7), "1 min 00 s"),
        (wording.duration(3725), "1 h 02 min"),
        (wording.short_count(460_800), "460,800"),
        (wording.short_count(4_915_200), "4.92 M"),
        (wording.plural(1, "round"), "1 round"),
        (wording.shorten("abcdefghij", 7), "abcd…ij"),
        (wording.clean("a\x00b\ud800"), "a\ufffdb\ufffd"),
    ],
)
def test_wording(made: str, expected: str) -> None:
    assert made == expected


def test_labels_are_spread_apart() -> None:
    places = spread_apart([10.0, 11.0, 12.0, 80.0], 16.0, 0.0, 100.0)
    assert all(b - a >= 15.9 for a, b in pairwise(places))
    assert places[0] > -0.1 and places[3] == 80.0


def _partition(clients: int, labels: int, *, diagonal: bool = False) -> dict[str, object]:
    counts = [[(7 if j == k else 0) if diagonal else 1 + (k * j) % 5 for j in range(labels)] for k in range(clients)]
    names = {"clients": [f"c{k}" for k in range(clients)], "labels": [f"l{j}" for j in range(labels)]}
    return {**names, "counts": counts, "rows": [sum(row) for row in counts]}


@pytest.mark.parametrize(
    ("partition", "words"),
    [
        (_partition(8, 6), ["area of a circle"]),
        (_partition(8, 40), ["The 21 rarest of 40 labels are summed"]),
        (_partition(500, 6), ["a group of clients", "about 2 clients"]),
        (_partition(100, 6), ["is a client"]),
        (_partition(6, 6, diagonal=True), ["one label only"]),
        (_partition(500, 1), ["How many of the 500 clients"]),
        (_partition(1, 1), ["Training rows of each client"]),
    ],
)
def test_partition_says_what_it_shows(partition: dict[str, object], words: list[str]) -> None:
    picture = partition_figure(partition)
    assert picture is not None
    assert all(word in picture.caption for word in words)
    assert len(picture.svg) < 400_000


def test_partition_of_nothing_is_no_picture() -> None:
    assert partition_figure({}) is None
