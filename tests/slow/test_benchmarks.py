"""Every benchmark at its smallest setting: it runs, its results agree, and it prints its ratios. Never how fast."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIO = r"\d+\.\d\d \[\d+\.\d\d\.\.\d+\.\d\d\]"
PRINTED = {
    "simulation": [
        rf"^  {method} +{RATIO} x plain +\d+% of peak$"
        for method in ("grouped", "grouped, G = all", "in place", "auto", "plain")
    ],
    "memory": [
        r"4 clients, +\d+ rounds: +[\d.]+ MB above what was loaded, ratio 1\.00",
        r"16 clients, +\d+ rounds: +[\d.]+ MB above what was loaded, ratio \d",
    ],
    "devices": [
        r"memory of the population: \d+ MB, \d+ bytes a device",
        rf"one selection over argpartition, uniform +{RATIO}",
        rf"one selection over argpartition, oort +{RATIO}",
        r"30 rounds of 20 with oort: [\d.]+ virtual days",
        r"a round over one of a tenth of the devices: [\d.]+",
    ],
    "loop": [rf"differences and sums in NumPy {RATIO}", rf"sums alone in NumPy {RATIO}"],
    "aggregation": [
        rf"^  fedavg +1\.00 vectors a client +{RATIO} x plain +{RATIO} x numpy$",
        rf"^  scaffold +2\.00 vectors a client +{RATIO} x plain +{RATIO} x numpy$",
        r"memory: 10 clients \d+ MB above the start, 20 clients \d+ MB; the most growth of a rule \d",
    ],
    "backprop_free": [
        r"^   2 layers: inference \d+ MB \([\d.]+\), central \d+ MB \([\d.]+\), jvp \d+ MB \([\d.]+\), backprop \d+ MB",
        rf"^  4 central differences over 2 x 4 forward passes of the suffix \(1x8x64\): {RATIO}$",
        *(rf"^  {kind}, 8 directions one by one over joint passes \(1x1x16\): {RATIO}$" for kind in ("central", "jvp")),
        rf"^  clients one by one over joint passes, 2 directions \(8x1x16\): {RATIO}$",
        *(
            rf"^  2 of 8 layers, {which}: the uplink 0\.25 of that of all\n  its step over that of all layers .*: {RATIO}$"
            for which in ("the highest", "amid the upper half", "evenly spread")
        ),
        rf"^  the twin over this, 4 directions \(8x1x16\): {RATIO}$",
        r"^  bytes of the twin's message over the trained slices': \d+, over seeds': \d+$",
    ],
    "workers": [rf"^  {what} +{RATIO}$" for what in ("on the clock", "CPU time of the longest path")],
    "engines": [rf"^  engine {kind} +{RATIO} x numpy   CPU time {RATIO} x numpy" for kind in ("local", "ray")],
    "remote": [r"^  fedloom +\d\.\d+ s a round, median of 2 .*; \d+\.\d+ CPU s; server's side at most \d+ MB together"],
    "crowd": [
        r"^     4 clients: 12 answers to 12 asks; ",
        r"^  8 clients over 4, 2\.00 times as many: seconds a round \d\.\d\d, .*memory of the broker \d\.\d\d",
    ],
    "fuzz_wire": [r"frames, seed 0: no other error than FedloomError$"],
    "factors": [rf"dense SVD of the d x d mean over the thin one +{RATIO}$"],
    "startup": [
        rf"fedloom {verb} +{RATIO} x python +{RATIO} x import torch   imports torch: no"
        for verb in ("--help", "validate")
    ],
}

ONCE = {"memory", "crowd", "fuzz_wire"}
"""Those that have no turns to repeat."""
DIFFER = {
    "simulation": r"largest difference between results (\S+) ",
    "loop": r"largest difference (\S+)",
    "aggregation": r"largest difference between plain averaging and NumPy (\S+)",
}
"""How far results are from those of the plain way, where that is printed."""


def benchmark(name, *options):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--smallest", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("name", PRINTED)
def test_it_runs_and_prints_its_ratios(name):
    said = benchmark(name, *([] if name in ONCE else ["--repetitions", "1"]))
    for line in PRINTED[name]:
        assert re.search(line, said, re.MULTILINE), said
    if name in DIFFER:
        assert float(re.search(DIFFER[name], said)[1]) <= (1e-5 if name == "simulation" else 1e-6), said


@pytest.mark.peer
def test_flower_has_strategies_of_the_same_names():
    said = benchmark("aggregation", "--repetitions", "1", "--with-flower")
    assert len(re.findall(rf" x numpy +{RATIO} x flower$", said, re.MULTILINE)) >= 7, said


@pytest.mark.peer
def test_pfl_gives_the_same_result():
    said = benchmark("simulation", "--repetitions", "1", "--with-pfl")
    assert re.search(rf"^  pfl +{RATIO} x pfl", said, re.MULTILINE), said
