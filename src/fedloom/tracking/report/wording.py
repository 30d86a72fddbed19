"""How names and numbers are written for human eyes: few digits, thousands separated, SI units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedloom.algorithms import ALGORITHMS

__all__ = [
    "algorithm_label",
    "algorithm_line",
    "algorithm_name",
    "clean",
    "clean_lines",
    "count",
    "deviation",
    "duration",
    "lower_is_better",
    "methods",
    "metric_label",
    "number",
    "plural",
    "short_count",
    "shorten",
    "size",
]

_PERCENT = ("accuracy", "exact_match", "f1")
_RISING = (*_PERCENT, "auc", "ndcg", "hit_rate", "mcc")  # as the evaluator has it; a test holds them together
_YARDSTICKS = {
    "local": "Clients alone",
    "central": "Pooled data",
}
MISSING = "–"


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one: all but accuracies, F1, AUC and their kind."""
    return not metric.endswith(_RISING)


def metric_label(metric: str) -> str:
    """ "eval_loss" as "Eval loss"."""
    words = clean(metric).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def methods(algorithm: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The methods of a manifest's `algorithm`, with their options: `{"name": ..., "with": [...]}` is several."""
    if not algorithm:
        return []
    others = [m for m in algorithm.get("with") or [] if isinstance(m, dict)]
    return [{key: value for key, value in algorithm.items() if key != "with"}, *others]


def algorithm_name(algorithm: Mapping[str, Any] | None) -> str:
    """The name as in the file, "fedavg"; that of several methods as "fedprox with fedadam"; empty where none is told."""
    return " with ".join(str(method.get("name")) for method in methods(algorithm))


def algorithm_label(algorithm: Mapping[str, Any] | str | None) -> str:
    """ "fedavg" as "FedAvg", as its class is called; the yardsticks by what they mean; a name of the user's own as it is."""
    if algorithm is None or not isinstance(algorithm, str):
        return " with ".join(algorithm_label(str(method.get("name"))) for method in methods(algorithm))
    return _YARDSTICKS.get(algorithm) or clean(ALGORITHMS.get(algorithm, f":{algorithm}").partition(":")[2])


def algorithm_line(algorithm: Mapping[str, Any] | None) -> str:
    """Methods with their options: "FedProx (mu 0.1) with FedAdam (lr 0.01, tau 0.001)"."""
    parts = []
    for method in methods(algorithm):
        options = ", ".join(f"{k} {clean(v)}" for k, v in method.items() if k != "name" and v not in (None, [], {}))
        label = algorithm_label(str(method.get("name")))
        parts.append(f"{label} ({options})" if options else label)
    return " with ".join(parts)


def number(value: float | None, metric: str = "") -> str:
    """A metric's value: percent where the metric is a share, else three or so significant digits."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not finite"
    if any(metric.endswith(word) for word in _PERCENT) and 0 <= value <= 1:
        return f"{100 * value:.1f}%"
    size_ = abs(value)
    if size_ >= 1000:
        return f"{value:,.0f}"
    if size_ >= 100:
        return f"{value:.1f}"
    if size_ >= 0.1 or value == 0:
        return f"{value:.2f}" if size_ >= 1 or value == 0 else f"{value:.3f}"
    return f"{value:.2g}"


def deviation(value: float, metric: str) -> str:
    """A standard deviation: in points where the metric is in percent."""
    return f"{100 * value:.1f} points" if number(0.5, metric).endswith("%") else number(value, metric)


def count(value: float | None) -> str:
    """A whole number with thousands separated."""
    return MISSING if value is None else f"{round(value):,}"


def short_count(value: float | None) -> str:
    """A large number with a unit: 4.9 M."""
    if value is None:
        return MISSING
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return count(value)


def size(value: float | None) -> str:
    """Bytes in SI units: 1 MB is 1,000,000 bytes."""
    if value is None:
        return MISSING
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds as "42 s", "3 min 12 s" or "2 h 05 min"."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def clock_unit(most: float) -> tuple[float, str]:
    """The seconds of the unit in which times up to this are drawn, and its name."""
    for seconds, name in ((86_400.0, "days"), (3_600.0, "hours"), (60.0, "minutes")):
        if most >= 3 * seconds:
            return seconds, name
    return 1.0, "seconds"


def plural(n: int, noun: str) -> str:
    """ "1 client", "8 clients"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def clean(text: object) -> str:
    """Text of others made safe to draw: unprintable characters and lone surrogates become a question mark box."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


def clean_lines(text: str) -> str:
    """`clean`, line by line."""
    return "\n".join(clean(line.expandtabs()) for line in text.split("\n"))


def shorten(text: object, most: int = 24) -> str:
    """At most so many characters, with an ellipsis in the middle so that both ends of an id stay readable."""
    whole = clean(text)
    if len(whole) <= most:
        return whole
    tail = (most - 1) // 3
    return f"{whole[: most - 1 - tail]}…{whole[-tail:]}"
