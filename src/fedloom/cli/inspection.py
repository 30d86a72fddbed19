"""What `fedloom data inspect` finds out of an experiment's rows, and how it is shown."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from fedloom.data.partition import describe
from fedloom.devices.describe import describe as describe_devices
from fedloom.devices.population import Population
from fedloom.local.prepare import PreparedData, strata_column

__all__ = ["device_lines", "inspect_data", "show"]

_MOST = 20
_QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}


def inspect_data(data: PreparedData, population: Population | None = None) -> dict[str, Any]:
    """The facts of an experiment's data, and of its devices; of clients and labels, those with the most rows."""
    lengths, sizes = data.table.lengths, data.train.sizes
    experiment = data.experiment
    return {
        "experiment": experiment.name,
        "source": experiment.data.source,
        "rows": len(data.table),
        "dropped": data.table.dropped,
        "truncated": data.table.truncated,
        "max_length": experiment.data.max_length,
        "tokens": {name: float(np.quantile(lengths, q)) for name, q in _QUANTILES.items()},
        "held_out": len(data.held_out),
        "first_example": _example(data),
        "partition": {
            "kind": experiment.data.partition.kind,
            "digest": data.train.digest,
            "clients": len(data.train),
            "rows": {"min": int(sizes.min()), "median": float(np.median(sizes)), "max": int(sizes.max())},
            "validation_rows": int(data.validation.sizes.sum()),
            "by": strata_column(experiment),
            "table": _crosstab(data),
        },
        "devices": None if population is None else describe_devices(population),
    }


def device_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Devices in a few lines."""
    lines = [
        (label, ", ".join(f"{name} {float(f'{value:.3g}'):,.6g}" for name, value in facts[key].items()))
        for key, label in (("ms_per_sample", "ms a sample"), ("down_kbps", "kbit/s down"), ("up_kbps", "kbit/s up"))
    ]
    share = ", ".join(f"{name} {value:.0%}" for name, value in facts["online_share"].items())
    return [*lines, ("time online", f"{share}; {facts['never_online']:,} never")]


def _example(data: PreparedData) -> dict[str, Any]:
    """The first row, decoded from its tokens: what the model will see; nothing for a task without `input_ids`."""
    if "input_ids" not in data.table.columns:
        return {}
    ids, offsets = data.table.ragged("input_ids")
    tokens = ids[: offsets[1]]
    example: dict[str, Any] = {"text": _decode(data, tokens), "tokens": len(tokens)}
    if "learnt" in data.table.columns:
        learnt = data.table.ragged("learnt")[0][: offsets[1]]
        example["learnt"] = _spans(data, tokens, learnt)
        example["learnt_tokens"] = int(learnt.sum())
    if "label_id" in data.table.columns:
        example["label"] = data.labels[int(data.table.column("label_id")[0])]
    return example


def _spans(data: PreparedData, tokens: Any, learnt: Any) -> list[list[int]]:
    """Where the learnt tokens' text begins and ends, in characters of the decoded text."""
    spans, at = [], 0
    for wanted, run in groupby(learnt.tolist()):
        start, at = at, at + len(list(run))
        if wanted:
            spans.append([len(_decode(data, tokens[:start])), len(_decode(data, tokens[:at]))])
    return spans


def _decode(data: PreparedData, tokens: Any) -> str:
    return str(data.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False))


def _crosstab(data: PreparedData) -> dict[str, Any]:
    """Training rows of the largest clients by the most frequent labels."""
    facts = describe(data.train, *data.strata)
    counts = np.asarray(facts["counts"], dtype=np.int64)
    rows = np.argsort(-data.train.sizes, kind="stable")[:_MOST]
    columns = np.argsort(-counts.sum(0), kind="stable")[:_MOST]
    return {
        "clients": [facts["clients"][k] for k in np.sort(rows)],
        "labels": [facts["labels"][j] for j in columns],
        "counts": counts[np.sort(rows)][:, columns].tolist(),
        "rows": data.train.sizes[np.sort(rows)].tolist(),
        "all_labels": len(facts["labels"]),
    }


def show(facts: dict[str, Any]) -> None:
    """Print the facts for a reader."""
    from rich.console import Console
    from rich.markup import escape

    from fedloom.tracking.report.wording import clean

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width to fit into
    partition, rows = facts["partition"], facts["partition"]["rows"]
    dropped = "".join(f"; dropped {count}: {why}" for why, count in facts["dropped"].items())
    cut = f"; {facts['truncated']} cut at the end" if facts["truncated"] else ""
    lengths = ", ".join(f"{name} {value:g}" for name, value in facts["tokens"].items())
    own = f"; {partition['validation_rows']:,} more for the clients' own evaluation"
    lines = [
        ("source", clean(facts["source"])),
        ("rows", f"{facts['rows']:,}{dropped}{cut}"),
        ("tokens", f"{lengths} (max_length {facts['max_length']})"),
        ("held out", f"{facts['held_out']:,} rows"),
        ("partition", f"{partition['kind']}, {partition['clients']:,} clients"),
        ("rows each", f"{rows['min']:,} to {rows['max']:,}, median {rows['median']:g}{own}"),
        *(device_lines(facts["devices"]) if facts["devices"] else ()),
    ]
    for name, text in lines:
        console.print(f"{name:<13}{escape(text)}")
    if facts["first_example"]:
        _show_example(console, facts["first_example"])
    _show_table(console, partition)


def _show_example(console: Any, example: dict[str, Any]) -> None:
    """The text as the model sees it, its learnt part between brackets."""
    from rich.text import Text

    from fedloom.tracking.report.wording import clean, clean_lines

    learnt = f"; learnt: the {example['learnt_tokens']} between ⟦ and ⟧" if "learnt" in example else ""
    label = f"; label: {clean(example['label'])}" if "label" in example else ""
    console.print(f"\nthe first example, {example['tokens']} tokens{learnt}{label}", markup=False)
    text = example["text"]
    for start, end in reversed(example.get("learnt", [])):
        text = f"{text[:start]}⟦{text[start:end]}⟧{text[end:]}"
    console.print(Text("\n".join(f"  {line}" for line in clean_lines(text).split("\n"))))


def _show_table(console: Any, partition: dict[str, Any]) -> None:
    """Clients by labels, as many labels as the width has room for."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from fedloom.tracking.report.wording import shorten

    cells = partition["table"]
    labels = [shorten(label, 14) for label in cells["labels"]]
    width = console.width - 40
    room = [sum(max(len(label), 5) + 3 for label in labels[: n + 1]) <= width for n in range(len(labels))]
    shown = max(sum(room), 1) if partition["by"] else 0
    few = len(cells["clients"]) < partition["clients"]
    left = cells["all_labels"] - shown if partition["by"] else 0
    title = "training rows by client" + (f" and {partition['by']}" if partition["by"] else "")
    note = [f"the {len(cells['clients'])} largest clients"] * few + [f"{left} rarer values not shown"] * (left > 0)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("client")
    for heading in ("rows", *labels[:shown]):
        table.add_column(Text(heading), justify="right")
    for client, rows, counts in zip(cells["clients"], cells["rows"], cells["counts"], strict=True):
        values = [f"{count:,}" if count else "·" for count in counts[:shown]]
        table.add_row(Text(shorten(client, 26)), f"{rows:,}", *values)
    console.print(f"\n{title}" + (f" ({'; '.join(note)})" if note else ""), markup=False)
    console.print(table, soft_wrap=False)
