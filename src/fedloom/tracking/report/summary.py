"""The numbers of a run: the headline sentence, the key figures, the results per client. No drawing, no markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fedloom.tracking.reading import RunFiles, is_number
from fedloom.tracking.report.distribution import worst_tenth
from fedloom.tracking.report.wording import (
    MISSING,
    algorithm_label,
    clean,
    count,
    deviation,
    duration,
    lower_is_better,
    metric_label,
    number,
    plural,
    short_count,
    size,
)

__all__ = ["ClientResult", "ClientResults", "Tile", "banner", "client_results", "headline", "spread_by_round", "tiles"]

MOST_CLIENT_ROWS = 200


class Tile(NamedTuple):
    """One key figure: what it is, its value, and a note below."""

    label: str
    value: str
    note: str = ""


def progress(run: RunFiles) -> tuple[int, int]:
    """Rounds done and rounds planned."""
    done = run.rounds_done
    planned = run.manifest.get("rounds") or (run.config.get("federation") or {}).get("rounds") or done
    return done, int(planned)


def headline(run: RunFiles) -> str:
    """What the run achieved, in one plain sentence, placed between its yardsticks where there are any."""
    metric = run.metric
    before, after = run.value(metric, "before"), run.value(metric, "after")
    over = f"over {plural(progress(run)[0], 'round')}"
    if after is None:
        rounds, losses = run.curve("train_loss")
        if not rounds:
            return "No round has been finished yet."
        what = f"Training loss {_moved(losses[0], losses[-1], 'train_loss')} {over}"
        return f"{what}; this run holds no evaluation after training."
    if before is None:
        sentence = f"{metric_label(metric)} is {number(after, metric)} after {plural(progress(run)[0], 'round')}"
    else:
        sentence = f"{metric_label(metric)} {_moved(before, after, metric)} {over}"
    return f"{sentence}{_placed(run, after)}."


def _moved(before: float, after: float, metric: str) -> str:
    first, last = number(before, metric), number(after, metric)
    if first == last:
        return f"stayed at {last}"
    return f"{'fell' if after < before else 'rose'} from {first} to {last}"


def _placed(run: RunFiles, after: float) -> str:
    """ "; between the clients alone (2.10) and all data pooled (1.45)": where the result stands."""
    names = {"local": "the clients alone", "central": "all data pooled"}
    sides: dict[str, list[str]] = {"better than": [], "level with": [], "worse than": []}
    values = {kind: yardstick_value(run, kind, run.metric) for kind in names}
    sign = -1.0 if lower_is_better(run.metric) else 1.0
    for kind, value in values.items():
        if value is None:
            continue
        shown = number(value, run.metric)
        gain = 0.0 if shown == number(after, run.metric) else sign * (after - value)
        side = "level with" if gain == 0 else "better than" if gain > 0 else "worse than"
        sides[side].append(f"{names[kind]} ({shown})")
    if len(sides["better than"]) == 1 and len(sides["worse than"]) == 1 and "alone" in sides["better than"][0]:
        return f"; between {sides['better than'][0]} and {sides['worse than'][0]}"
    parts = [f"{side} {' and '.join(found)}" for side, found in sides.items() if found]
    return f"; {', '.join(parts)}" if parts else ""


def yardstick_value(run: RunFiles, kind: str, metric: str) -> float | None:
    """A yardstick's metric after training; for `local` without one, the mean over the clients' own models."""
    other = run.yardstick(kind)
    if other is None:
        return None
    value = other.value(metric, "after")
    if value is None:
        spread = spread_by_round(other, metric)
        value = spread[max(spread)].mean if spread else None
    return value


class Spread(NamedTuple):
    """The clients' values in one round: mean, and the 10th and 90th percentile."""

    mean: float
    low: float
    high: float


def spread_by_round(run: RunFiles, metric: str) -> dict[int, Spread]:
    """How the clients' own models spread on the held-out rows, a round each; empty where that was not recorded."""
    values: dict[int, list[float]] = {}
    for record in run.client_records():
        if record.get("evaluated") == "held_out" and is_number(record.get(metric)):
            values.setdefault(int(record["round"]), []).append(float(record[metric]))
    return {
        r: Spread(float(np.mean(v)), float(np.percentile(v, 10)), float(np.percentile(v, 90)))
        for r, v in sorted(values.items())
    }


def banner(run: RunFiles, *, detail: bool = True) -> str | None:
    """What happened, for a run that did not finish; its last event, which may name a client, only with `detail`."""
    done, planned = progress(run)
    so_far = f"{done:,} of {plural(planned, 'round')} done"
    last = next((e for e in reversed(run.events) if e.get("kind") in ("failure", "interrupt", "warning")), None)
    said = f" {clean(last.get('text', ''))}" if last and detail else ""
    if run.status == "finished":
        return None
    if run.status == "failed":
        return f"This run failed: {so_far}.{said}"
    if run.status == "stopped":
        return f"This run was stopped: {so_far}.{said}"
    if run.status == "running":
        return f"This run is in progress, or its process was killed: {so_far}. The numbers are those so far.{said}"
    return f"How this run ended is not known: {so_far}.{said}"


def total(run: RunFiles, key: str) -> float | None:
    """The sum of a key of metrics.jsonl over all rounds; None where it never occurs."""
    values = run.curve(key)[1]
    return sum(values) if values else None


def tiles(run: RunFiles) -> list[Tile]:
    """The key figures, the watched metric first."""
    made = [_metric_tile(run, metric) for metric in _two_metrics(run)]
    made.append(_best_tile(run))
    selected = list(run.curve("clients")[1])
    dropped = total(run, "dropped") or 0
    in_round = f"{_range(selected)} in a round" if selected else ""
    note = ", ".join(p for p in (in_round, f"{plural(round(dropped), 'update')} dropped" if dropped else "") if p)
    made.append(Tile("Clients", count(_clients(run)), note))
    made.append(_trainable_tile(run))
    seats = sum(selected) + dropped
    for key, label in (("bytes_up", "Sent up"), ("bytes_down", "Sent down")):
        sent = total(run, key)
        per = (
            f"{size(sent / (seats if key == 'bytes_down' else seats - dropped))} per client and round"
            if sent and seats > dropped
            else ""
        )
        made.append(Tile(label, size(sent), per))
    seconds = run.manifest.get("seconds") or total(run, "seconds")
    tokens = total(run, "tokens")
    trained = total(run, "seconds")
    made.append(
        Tile("Tokens trained", short_count(tokens), f"{count(tokens / trained)} a second" if tokens and trained else "")
    )
    threads = run.manifest.get("threads")
    where = ", ".join(
        p for p in (clean(run.manifest.get("device") or ""), plural(int(threads), "thread") if threads else "") if p
    )
    made.append(Tile("Time", duration(seconds), where))
    clock = run.curve("virtual_seconds")[1]
    if clock:
        asked, arrived = total(run, "asked"), sum(selected)
        made.append(
            Tile("Virtual time", duration(clock[-1]), f"{arrived / asked:.0%} of those asked arrived" if asked else "")
        )
    peak = run.curve("peak_memory_bytes")[1]
    made.append(Tile("Peak memory", size(max(peak)) if peak else MISSING, ""))
    return [tile for tile in made if tile.value != MISSING]


def _two_metrics(run: RunFiles) -> list[str]:
    """The watched metric and one that says something else: of the other direction if there is one."""
    metrics = [m for m in run.metrics() if not m.startswith("eval_unseen_")]
    others = sorted(metrics[1:], key=lambda m: lower_is_better(m) == lower_is_better(metrics[0]))
    return [*metrics[:1], *others[:1]]


def _metric_tile(run: RunFiles, metric: str) -> Tile:
    before, after = run.value(metric, "before"), run.value(metric, "after")
    value = number(after, metric) if before is None else f"{number(before, metric)} → {number(after, metric)}"
    better = "lower is better" if lower_is_better(metric) else "higher is better"
    if after is None:
        return Tile(metric_label(metric), number(before, metric), "before training")
    return Tile(metric_label(metric), value, better)


def _best_tile(run: RunFiles) -> Tile:
    best = run.manifest.get("best") or {}
    if not is_number(best.get("round")):
        return Tile("Best round", MISSING)
    value = best.get("value")
    note = f"{metric_label(run.metric)} {number(value, run.metric)}" if is_number(value) else ""
    return Tile("Best round", f"{int(best['round']):,} of {progress(run)[0]:,}", note)


def _trainable_tile(run: RunFiles) -> Tile:
    trainable = run.manifest.get("trainable") or {}
    whole = trainable.get("model_parameters")
    share = trainable.get("n", 0) / whole if whole else None
    tensors = trainable.get("tensors") or []
    note = (
        f"{100 * share:.2g}% of the model"
        if share is not None
        else f"in {plural(len(tensors), 'tensor')}"
        if tensors
        else ""
    )
    return Tile("Trainable parameters", short_count(trainable.get("n")), note)


def _clients(run: RunFiles) -> int | None:
    stated = run.manifest.get("clients") or len(run.partition.get("clients") or [])
    return int(stated) or None


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


@dataclass
class ClientResult:
    """One client over the whole run: rows held, own metric before and after, the yardstick's, the last train loss."""

    name: str
    rows: int | None = None
    before: float | None = None
    after: float | None = None
    alone: float | None = None
    train_loss: float | None = None
    rounds: int = 0
    dropped: int = 0
    unseen: bool = False


@dataclass(frozen=True)
class ClientResults:
    """All clients, and what is shown of them.

    shown: at most 200, the worst first; left_out: how many are only summarised; cut: the index in `shown` after which
    they are missing; order: how they are sorted; statistics: label and text over all clients with the metric.
    """

    metric: str
    everyone: list[ClientResult]
    shown: list[ClientResult]
    left_out: int
    cut: int
    order: str
    statistics: list[Tile] = field(default_factory=list)
    note: str = ""

    @property
    def has(self) -> dict[str, bool]:
        """Which columns hold anything."""
        names = ("rows", "before", "after", "alone", "train_loss")
        filled = {n: any(getattr(c, n) is not None for c in self.shown) for n in names}
        return filled | {"dropped": any(c.dropped for c in self.shown)}

    @property
    def worst(self) -> float | None:
        """The mean over the worst tenth of the clients that train."""
        values = [c.after for c in self.everyone if c.after is not None and not c.unseen]
        return worst_tenth(values, self.metric) if values else None


def client_results(run: RunFiles, metric: str | None = None) -> ClientResults:
    """Results per client by a metric, or the watched one, from partition.json and clients.jsonl, streamed."""
    metric = metric or run.metric
    clients: dict[str, ClientResult] = {}
    sizes = run.partition.get("rows") or []
    for k, name in enumerate(run.partition.get("clients") or []):
        clients[str(name)] = ClientResult(clean(name), rows=int(sizes[k]) if k < len(sizes) else None)
    for record in run.client_records():
        name = str(record.get("client"))
        result = clients.get(name) or clients.setdefault(name, ClientResult(clean(name)))
        if "evaluated" in record:
            result.unseen = bool(record.get("unseen"))
            if record["evaluated"] == "own" and is_number(record.get(metric)):
                moment = "before" if record.get("round") == 0 else "after"
                setattr(result, moment, float(record[metric]))
            continue
        result.rounds += 1
        result.dropped += record.get("status") != "ok"
        if is_number(record.get("train_loss")):
            result.train_loss = float(record["train_loss"])
    alone = run.yardstick("local")
    for record in alone.client_records() if alone else ():
        mine = clients.get(str(record.get("client")))
        if mine and record.get("evaluated") == "own" and record.get("round") != 0 and is_number(record.get(metric)):
            mine.alone = float(record[metric])
    everyone = list(clients.values())
    shown, order = _ranked(everyone, metric)
    left_out, cut = 0, 0
    if len(shown) > MOST_CLIENT_ROWS:
        cut = MOST_CLIENT_ROWS // 2
        shown = [*shown[:cut], *shown[-cut:]]
        left_out = len(everyone) - MOST_CLIENT_ROWS
    statistics, note = _statistics(everyone, metric), _gain(everyone, metric)
    return ClientResults(metric, everyone, shown, left_out, cut, order, statistics, note)


def _ranked(clients: Sequence[ClientResult], metric: str) -> tuple[list[ClientResult], str]:
    """The clients, worst first, where the metric is known; else those that hold most rows first."""
    measured = [c for c in clients if c.after is not None]
    if not measured:
        return sorted(clients, key=lambda c: -(c.rows or 0)), "The clients with the most rows come first."
    sign = -1.0 if lower_is_better(metric) else 1.0
    measured.sort(key=lambda c: sign * (c.after or 0.0))
    others = [c for c in clients if c.after is None]
    if len(clients) > MOST_CLIENT_ROWS:
        others = []
    return [*measured, *others], "Worst first."


def _statistics(clients: Sequence[ClientResult], metric: str) -> list[Tile]:
    """The key figures over the clients that train, then over those that never do."""
    seen, unseen = ([c.after for c in clients if c.after is not None and c.unseen == u] for u in (False, True))
    tiles = []
    if len(seen) == 1:
        tiles.append(Tile("The one client", number(seen[0], metric)))
    elif seen:
        count_ = max(1, round(0.1 * len(seen)))
        word = "the worst client" if count_ == 1 else f"mean of the worst {count_:,}"
        best = min(seen) if lower_is_better(metric) else max(seen)
        tiles += [
            Tile("Mean", number(float(np.mean(seen)), metric), f"over {plural(len(seen), 'client')}"),
            Tile("Worst 10%", number(worst_tenth(seen, metric), metric), word),
            Tile("Best client", number(best, metric)),
            Tile("Standard deviation", deviation(float(np.std(seen)), metric), "between clients"),
        ]
    if unseen:
        note = f"mean over {plural(len(unseen), 'client')} that never trained"
        tiles.append(Tile("Unseen clients", number(float(np.mean(unseen)), metric), note))
    return tiles


def _gain(clients: Sequence[ClientResult], metric: str) -> str:
    """For how many clients the federated model is better on their own rows than what they had."""
    sign = -1.0 if lower_is_better(metric) else 1.0
    parts = []
    for attribute, text in (("before", "than before training"), ("alone", "than the model each trained alone")):
        gains = [
            sign * (c.after - getattr(c, attribute))
            for c in clients
            if not c.unseen and c.after is not None and getattr(c, attribute) is not None
        ]
        if gains:
            parts.append(f"{text} for {sum(g > 0 for g in gains):,} of {plural(len(gains), 'client')}")
    return f"On the clients' own rows the federated model is better {', and '.join(parts)}." if parts else ""


def subtitle(run: RunFiles) -> str:
    """The method, task, model and data in one line."""
    algorithm = algorithm_label(run.manifest.get("algorithm"))
    data = (run.manifest.get("data") or {}).get("source")
    parts = (algorithm, run.manifest.get("task"), run.manifest.get("model"), data)
    return " · ".join(clean(p) for p in parts if p)
