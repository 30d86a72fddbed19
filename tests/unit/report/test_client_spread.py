"""How results are spread over the clients: numbers by hand, from one client to many, unseen ones apart."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_fixtures import make_run

from fedloom.tracking.compare import compare
from fedloom.tracking.reading import RunFiles
from fedloom.tracking.report import summary, write_report
from fedloom.tracking.report.distribution import distributions, worst_tenth


def rewrite(run: Path, losses: dict[str, float], unseen: set[str] = frozenset()) -> Path:
    """The clients' last own losses, these."""
    lines = [json.loads(line) for line in (run / "clients.jsonl").read_text().splitlines()]
    for record in lines:
        if "evaluated" in record:
            if record["round"]:
                record["eval_loss"] = losses[record["client"]]
            if record["client"] in unseen:
                record["unseen"] = True
    (run / "clients.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    return run


def test_by_hand(tmp_path: Path) -> None:
    """Losses 1, 2, ... 20 and two unseen of 30 and 40: mean 10.5, worst tenth (19 + 20) / 2, first decile 1 + 0.1 * 19."""
    ids = [f"c{k}" for k in range(22)]
    losses = dict(zip(ids, [*map(float, range(1, 21)), 30.0, 40.0], strict=True))
    run = rewrite(make_run(tmp_path / "runs" / "x", clients=22, ids=ids, cohort=20), losses, {"c20", "c21"})
    results = summary.client_results(RunFiles.open(run))
    after, unseen, before = distributions(results)
    assert (after.mean, after.worst, len(after.values)) == (10.5, 19.5, 20)
    assert after.deciles == pytest.approx([2.9, 4.8, 6.7, 8.6, 10.5, 12.4, 14.3, 16.2, 18.1])
    assert after.deviation == pytest.approx((399 / 12) ** 0.5)  # of 1..n: sqrt((n^2 - 1) / 12)
    assert (unseen.label, unseen.mean, unseen.worst) == ("Unseen clients", 35.0, 40.0)
    assert len(before.values) == 20
    assert results.worst == 19.5
    tiles = {tile.label: tile.value for tile in results.statistics}
    assert tiles == {
        "Mean": "10.50", "Worst 10%": "19.50", "Best client": "1.00", "Standard deviation": "5.77",
        "Unseen clients": "35.00",
    }  # fmt: skip
    page = write_report(run).read_text()
    assert page.count('<span class="kind">unseen</span>') == 2 and "Unseen client<" in page and "18.10" in page


def test_the_worst_tenth_follows_the_direction_and_is_at_least_one() -> None:
    values = [0.1 * k for k in range(1, 11)]
    assert worst_tenth(values, "eval_accuracy") == pytest.approx(0.1)
    assert worst_tenth(values, "eval_loss") == pytest.approx(1.0)
    assert worst_tenth([3.0], "eval_loss") == 3.0
    assert worst_tenth(np.arange(30.0), "eval_loss") == 28.0


@pytest.mark.parametrize("clients", [1, 2, 8, 300])
def test_pages_of_any_number_of_clients(tmp_path: Path, clients: int) -> None:
    text = write_report(make_run(tmp_path / "runs" / "x", clients=clients, yardsticks=clients == 8)).read_text()
    assert ("middle 80%" in text) == (clients > 1)
    assert ("Trained alone" in text) == (clients == 8)
    assert ("Histogram of" in text) == (clients == 300)


@pytest.mark.slow
def test_a_hundred_thousand_clients(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "x", clients=100_000, rounds=1, labels=2)
    assert write_report(run).stat().st_size < 2_000_000


def test_a_comparison_has_the_worst_tenth(tmp_path: Path) -> None:
    ids = [f"c{k}" for k in range(4)]
    one = rewrite(make_run(tmp_path / "runs" / "a", clients=4, ids=ids), {"c0": 1.0, "c1": 2.0, "c2": 3.0, "c3": 4.0})
    two = rewrite(make_run(tmp_path / "runs" / "b", clients=4, ids=ids), dict.fromkeys(ids, 2.5))
    assert [row.worst for row in compare([one, two]).rows] == [4.0, 2.5]
