"""A line a round: live on a terminal, plain elsewhere; and Ctrl-C, which first finishes the round."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Live", "interruptible"]


class Live:
    """Prints every round's record; on a terminal also a bar with the time left."""

    def __init__(self, rounds: int, metric: str) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._rounds, self._metric = rounds, metric
        self._run: str | None = None
        self._started = time.monotonic()
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()

    def __call__(self, run: str, record: dict[str, Any]) -> None:
        if run != self._run:
            self._run, self._started, self._first = run, time.monotonic(), record["round"]
            self._console.print(f"[bold]{run}[/bold]")
            if self._bar:
                for task in self._bar.task_ids:
                    self._bar.remove_task(task)
                self._task = self._bar.add_task(run, total=self._rounds)
        if self._bar:
            self._bar.update(self._task, completed=record["round"])
        self._console.print(self._line(record), soft_wrap=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()

    def _line(self, r: dict[str, Any]) -> str:
        number = r["round"]
        parts = [f"  round {number}/{self._rounds}"]
        if "train_loss" in r:
            parts.append(f"train loss {r['train_loss']:.4f}")
        parts += [f"{k.removeprefix('eval_').replace('_', ' ')} {v:.4f}" for k, v in r.items() if k in self._shown(r)]
        if "clients" in r:
            others = [f", {r[fate]} {fate}" for fate in ("dropped", "late", "offline") if r.get(fate)]
            parts.append(f"{r['clients']} clients{''.join(others)}")
            if "asked" in r:
                from fedloom.tracking.report.wording import duration  # not before: it draws, and is slow to import

                parts.append(f"virtual time {duration(r['virtual_seconds'])}")
            if r["bytes_up"] or r["bytes_down"]:
                parts.append(f"{r['bytes_up'] / 1e6:.2f} MB up, {r['bytes_down'] / 1e6:.2f} MB down")
            left = (self._rounds - number) * (time.monotonic() - self._started) / max(number - self._first, 1)
            parts.append(
                f"{r['seconds']:.1f} s, {left:.0f} s left" if number > self._first else f"{r['seconds']:.1f} s"
            )
        return "  ".join(parts)

    def _shown(self, r: dict[str, Any]) -> list[str]:
        judged = [k for k in r if k.startswith("eval_")]
        first = [k for k in ("eval_loss", self._metric) if k in judged]
        rest = [k for k in judged if k not in first and k != "eval_perplexity"]
        return list(dict.fromkeys([*first, *rest]))[:2]


@contextmanager
def interruptible() -> Iterator[Any]:
    """Yields `asked()`: the first Ctrl-C makes it true, and the round under way is finished and saved; the second stops at once."""
    asked = False

    def ask(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("\nfinishing the round; press Ctrl-C again to stop at once", file=sys.stderr)

    earlier = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, earlier)
