"""`engine: {kind: local, workers: 2}` against one process: the same experiment, trained in place, one thread a process.

Rounds of either engine in turn, on the clock; the ratio is the median over the turns, of one process over two workers. The results
must be the same bits. The clock of a machine that others use says little, so CPU time is printed too: what one process needs over
what the longest path with workers needs, the round loop's own and the busiest worker's, which is what a quiet machine would give;
and what all processes together need over one. Then the memory that the processes hold, each page divided by those that share it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from common import SEED, TINY, Size, machine, one_round, ratio

from fedloom import api
from fedloom.engines.pool import PoolEngine
from fedloom.federation import Federation
from fedloom.local.prepare import Prepared
from fedloom.tracking.rundir import RunDir

HERE = Path(__file__).parent
SIZES = {"model": Size(), "tiny": TINY}
CLIENTS, ROWS, WORDS = 8, 40, 60


def _build(size: Size) -> tuple[Any, Any]:
    """A Llama of random weights, and a tokenizer of whole words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(size.vocabulary - 4))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config = transformers.LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.width, intermediate_size=size.inner, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.heads, max_position_embeddings=512,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return transformers.LlamaForCausalLM(config), tokenizer


def model(labels: list[str]) -> tuple[Any, Any]:
    """The experiment names it `workers:model`."""
    return _build(SIZES["model"])


def tiny(labels: list[str]) -> tuple[Any, Any]:
    """The experiment names it `workers:tiny`."""
    return _build(SIZES["tiny"])


def rows() -> Iterator[dict[str, str]]:
    """Clients with as many rows of as many words each."""
    draw = random.Random(SEED)
    for i in range(CLIENTS * ROWS):
        words = [f"w{draw.randrange(90)}" for _ in range(WORDS)]
        yield {"question": " ".join(words[:20]), "answer": " ".join(words[20:]), "owner": f"client-{i % CLIENTS}"}


def experiment(name: str, steps: int) -> dict[str, Any]:
    """What the file would say."""
    return {
        "name": "workers",
        "seed": SEED,
        "model": {"path": f"workers:{name}", "task": "causal_lm"},
        "adapter": {"kind": "lora", "r": 8, "targets": "all-linear", "aggregation_error": "never"},
        "data": {
            "source": "workers:rows",
            "fields": {"instruction": "question", "output": "answer"},
            "template": "plain",
            "max_length": 64,
            "partition": {"kind": "column", "column": "owner"},
            "held_out": 0.0,
            "validation": 0.0,
        },
        "federation": {"rounds": 1_000_000},
        "local": {"optimizer": "sgd", "lr": 0.1, "steps": steps, "batch_size": 4, "grouping": "in_place"},
        "evaluation": {"every": 0},
        "checkpoints": {"every": 1_000_000, "keep_best": False},
        "engine": {"kind": "local", "threads": 1, "device": "cpu", "group_size": 1},
        "tensorboard": False,
    }


def federation(prepared: Prepared, folder: Path, workers: int) -> Federation:
    """A federation with so many workers."""
    own = prepared.experiment
    engine = own.engine.model_copy(update={"workers": workers})
    other = replace(prepared, experiment=own.model_copy(update={"engine": engine}))
    return Federation(other, RunDir.create(folder / f"workers-{workers}", "", {}))


def pids(pool: PoolEngine) -> list[int]:
    """The processes of the workers."""
    return [worker.pid for worker in pool._workers if worker is not None]


def cpu(process: int) -> float:
    """CPU seconds of a process so far."""
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def turn(run: Federation) -> tuple[float, float, float]:
    """A round: seconds on the clock, CPU seconds of its longest path, CPU seconds of all its processes."""
    workers = pids(run.engine) if isinstance(run.engine, PoolEngine) else []
    before, own, started = [cpu(pid) for pid in workers], time.process_time(), time.perf_counter()
    one_round(run)
    seconds, own = time.perf_counter() - started, time.process_time() - own
    theirs = [cpu(pid) - earlier for pid, earlier in zip(workers, before, strict=True)]
    return seconds, own + max(theirs, default=0.0), own + sum(theirs)


def memory(process: int) -> str:
    """What a process holds: its share, and what it alone holds."""
    held = psutil.Process(process).memory_full_info()
    return f"{held.pss / 2**20:5.0f} MB, {held.uss / 2**20:5.0f} of them its own"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--smallest", action="store_true", help="a tiny model: a check, not a measurement")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "experiment.yaml"
        file.write_text(json.dumps(experiment("tiny" if options.smallest else "model", options.steps)))  # JSON is YAML
        prepared = api.prepare(api.load(file, base=HERE))
        alone, pooled = (federation(prepared, folder, workers) for workers in (1, 2))
        try:
            if not torch.equal(one_round(alone), one_round(pooled)):
                raise SystemExit("the results differ")
            turns = [(turn(alone), turn(pooled)) for _ in range(options.repetitions)]
            print(
                f"{CLIENTS} clients, a group each, {options.steps} steps; one process over two workers, {len(turns)} turns"
            )
            for column, what in enumerate(
                ("on the clock", "CPU time of the longest path", "CPU time of all processes")
            ):
                print(f"  {what:30} {ratio([a[column] for a, _ in turns], [b[column] for _, b in turns])}")
            show_memory(pooled.engine, prepared)
        finally:
            for run in (alone, pooled):
                run.engine.close()
                run.run_dir.close()


def show_memory(pool: Any, prepared: Prepared) -> None:
    """What two workers hold, and what they would if each loaded the experiment itself."""
    print(f"this process                       {memory(psutil.Process().pid)}")
    print(f"the template                       {memory(pool._template.pid)}")
    for pid in pids(pool):
        print(f"a worker                           {memory(pid)}")
    apart = PoolEngine(prepared, pool._store, 2)
    apart.close()
    apart._forks = False
    try:
        for slot in range(2):
            apart._workers[slot] = apart._ready(slot)
        for pid in pids(apart):
            print(f"a worker that loads by itself      {memory(pid)}")
    finally:
        apart.close()


if __name__ == "__main__":
    main()
