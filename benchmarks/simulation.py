"""One federated LoRA round, computed by fedloom, by a hand-written loop, and by Apple's pfl-research.

The same model, data, batches and optimizer; all results must agree. CPU time of one thread, the methods in turn; ratios are
medians over the turns of what was measured in the same turn. `--with-pfl` installs the peer in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from common import (
    LEARNING_RATE,
    SEED,
    STEPS,
    TINY,
    Setting,
    Size,
    build_model,
    cpu_seconds,
    gemm_peak,
    machine,
    make_federation,
    make_prepared,
    make_tokens,
    one_round,
    ratio,
    rotate,
    round_flops,
    trainable,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedloom.local.batches import plan_steps
from fedloom.local.prepare import Prepared

HERE = Path(__file__).parent
PFL = "0.5.1"
TOLERANCE = 1e-5
PEAK = "peak"  # measured in turn with the methods: operations a second instead of seconds


def plain_round(model: nn.Module, steps: list[list[Tensor]]) -> dict[str, Tensor]:
    """A round as a careful researcher writes it: one resident model, adapters restored in place, a running sum."""
    parameters: list[Tensor] = list(trainable(model).values())
    start = [p.detach().clone() for p in parameters]
    total = [torch.zeros_like(p) for p in parameters]
    for batches in steps:
        optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE)
        for batch in batches:
            optimizer.zero_grad()
            model(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss.backward()
            optimizer.step()
        with torch.no_grad():
            torch._foreach_add_(total, parameters, alpha=1.0 / len(steps))
            torch._foreach_copy_(parameters, start)
    return dict(zip(trainable(model), total, strict=True))


def in_order(prepared: Prepared, tokens: Tensor) -> Tensor:
    """`[clients, rows, tokens]` with each client's rows in the order in which fedloom's round 1 takes them."""
    train, rows = prepared.train, tokens.flatten(0, 1)
    ordered = []
    for k, name in enumerate(train.clients):
        lengths, local = prepared.table.lengths, prepared.experiment.local
        steps = plan_steps(train.rows(k), lengths, local, seed=SEED, round=1, client=name)
        ordered.append(torch.cat([rows[torch.from_numpy(part)] for step in steps for part in step]))
    return torch.stack(ordered)


def pfl_python() -> str:
    """The interpreter of the peer's environment, which is made on first use."""
    home = HERE / ".venv-pfl"
    python = str(home / "bin" / "python")
    check = [python, "-c", "import pfl, peft, transformers"]
    if not Path(python).exists() or subprocess.run(check, capture_output=True, check=False).returncode:
        venv.create(home, with_pip=True, clear=True)
        wanted = [f"pfl=={PFL}", *(f"{name}=={version(name)}" for name in ("transformers", "peft", "safetensors"))]
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(HERE.parent / "constraints.txt"), "torch", *wanted], check=True)
    return python


@contextmanager
def pfl_rounds(
    folder: Path, model: nn.Module, tokens: Tensor, setting: Setting, size: Size
) -> Iterator[Callable[[], float]]:
    """The peer's process; each call is one round there and answers its CPU seconds."""
    save_file({k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "start.safetensors")
    save_file({"tokens": tokens}, folder / "tokens.safetensors")
    (folder / "setting.json").write_text(json.dumps({"size": asdict(size), "batch": setting.batch}))
    command = [pfl_python(), str(HERE / "pfl_child.py"), str(folder)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    requests, answers = child.stdin, child.stdout
    assert requests is not None and answers is not None
    try:
        yield lambda: _ask(requests, answers)
    finally:
        requests.close()
        child.wait(timeout=60)


def _ask(requests: IO[str], answers: IO[str]) -> float:
    requests.write("round\n")
    requests.flush()
    answer = answers.readline()
    if not answer:
        raise SystemExit("the peer's process ended")
    return float(json.loads(answer)["seconds"])


def compare(setting: Setting, size: Size, repetitions: int, with_pfl: bool) -> None:
    """Check that all methods agree, time them in turn, print."""
    model, tokens = build_model(size), make_tokens(setting, size)
    twin = build_model(size)
    prepared = make_prepared(setting, tokens, model)
    ordered = in_order(prepared, tokens)
    batches = [list(rows.split(setting.batch)) for rows in ordered]
    options: dict[str, dict[str, Any]] = {
        "grouped": {"local": {"grouping": "grouped"}},
        "grouped, G = all": {"local": {"grouping": "grouped"}, "engine": {"group_size": setting.clients}},
        "in place": {"local": {"grouping": "in_place"}},
        "auto": {},
        "auto, error told": {"adapter": {"aggregation_error": "auto"}},  # which the others do not measure
    }
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        federations = {name: make_federation(prepared, folder, **own) for name, own in options.items()}
        print(
            f"\n{setting} (clients x batch x tokens), {STEPS} steps of SGD, {prepared.binding.layout.n:,} learnt numbers"
        )
        for name, federation in federations.items():
            sizing = federation.engine.sizing
            print(f"  {name}: {sizing.how}, group size {sizing.group_size} ({sizing.reason})")
        methods = {name: _timed(one_round, federation) for name, federation in federations.items()}
        methods["plain"] = _timed(plain_round, twin, batches)
        results = {name: prepared.binding.layout.views(one_round(own)) for name, own in federations.items()}
        results["plain"] = plain_round(twin, batches)
        if with_pfl:
            methods["pfl"] = stack.enter_context(pfl_rounds(folder, twin, ordered, setting, size))
            methods["pfl"]()
            results["pfl"] = load_file(folder / "pfl.safetensors")
        check_equal(results, trainable(twin))
        seconds = rotate(methods | {PEAK: gemm_peak}, repetitions)
        for federation in federations.values():
            federation.run_dir.close()
    peak = max(seconds.pop(PEAK))
    report(seconds, round_flops(setting, size) / peak)


def _timed(work: Callable[..., object], *arguments: object) -> Callable[[], float]:
    return lambda: cpu_seconds(lambda: work(*arguments))


def check_equal(results: dict[str, dict[str, Tensor]], start: dict[str, nn.Parameter]) -> None:
    """All methods must give the plain loop's result."""
    plain = results["plain"]
    update = max(float((plain[name] - p.detach()).abs().max()) for name, p in start.items())
    largest = {
        method: max(float((plain[name] - own[name]).abs().max()) for name in start) for method, own in results.items()
    }
    worst = max(largest, key=lambda name: largest[name])
    print(f"  largest difference between results {largest[worst]:.1e} ({worst}), largest update {update:.1e}")
    if not largest[worst] <= TOLERANCE < update:
        raise SystemExit(f"the results differ by {largest}, the update is {update}")


def report(seconds: dict[str, list[float]], floor: float) -> None:
    """A line a method: its speed against the others, and the share of the matrix-product peak it reaches."""
    against = [name for name in ("pfl", "plain") if name in seconds]
    for name, own in seconds.items():
        speeds = "  ".join(f"{ratio(seconds[other], own):>20} x {other}" for other in against)
        print(f"  {name:18} {speeds}   {100 * floor / min(own):4.0f}% of peak")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", type=Setting.parse, default=[Setting(32, 1, 16), Setting(8, 4, 64)])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--with-pfl", action="store_true", help=f"also pfl {PFL}, in benchmarks/.venv-pfl")
    parser.add_argument(
        "--smallest", action="store_true", help="a tiny model and one small round: a check, not a measurement"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    size, settings = (TINY, [Setting(4, 1, 8)]) if options.smallest else (Size(), options.settings)
    for setting in settings:
        compare(setting, size, options.repetitions, options.with_pfl)


if __name__ == "__main__":
    main()
