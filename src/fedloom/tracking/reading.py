"""Reading a run directory: one lenient but loud reader for the report, the comparison and the evaluation.

A crash may leave a last line cut or a file not yet written. That is tolerated and said in `remarks`; anything
else that is damaged is an error which names the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedloom.errors import RunError

__all__ = ["Record", "RunArgumentError", "RunFiles", "no_run", "read_records"]

Record = dict[str, Any]
YARDSTICKS = ("local", "central")


class RunArgumentError(RunError):
    """A run named by the user is no run, or cannot be used as asked."""

    exit_code = 2


@dataclass(frozen=True)
class RunFiles:
    """What a run directory says about its run.

    rounds: the records of metrics.jsonl in order of round, the last one where a round occurs twice; remarks: what
    was missing or cut, in plain sentences. Client records can be many and are streamed by `client_records`.
    """

    path: Path
    manifest: Record
    config: Record
    config_text: str
    rounds: list[Record]
    events: list[Record]
    partition: Record
    remarks: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path | str) -> RunFiles:
        """Read a run directory. Raises `RunArgumentError` for a folder that is no run, `RunError` for a damaged one."""
        path = Path(path)
        if not is_run(path):
            raise no_run(path)
        remarks: list[str] = []
        manifest = _read_json(path / "manifest.json", remarks)
        config_text = _read_text(path / "config.yaml", remarks)
        by_round: dict[int, Record] = {}
        for record in _lines(path / "metrics.jsonl", remarks):
            round_ = int(record.get("round", 0))
            if round_ in by_round:
                remarks.append(f"metrics.jsonl holds round {round_} more than once; the last record counts.")
            by_round[round_] = record
        return cls(
            path=path,
            manifest=manifest,
            config=_parse_yaml(path / "config.yaml", config_text),
            config_text=config_text,
            rounds=[by_round[r] for r in sorted(by_round)],
            events=list(_lines(path / "events.jsonl", remarks)),
            partition=_read_json(path / "partition.json", remarks),
            remarks=remarks,
        )

    @property
    def name(self) -> str:
        """The run's name, or its folder's."""
        return str(self.manifest.get("name") or self.config.get("name") or self.path.resolve().name)

    @property
    def shown_path(self) -> str:
        """The end of the path, `runs/NAME`: what a reader can type, without the rest of a machine's folders."""
        full = self.path.resolve()
        parts = full.parts[-4:] if full.parent.name == "yardsticks" else full.parts[-2:]
        return "/".join(parts)

    @property
    def metric(self) -> str:
        """The watched metric."""
        return str(self.manifest.get("metric") or "eval_loss")

    @property
    def status(self) -> str:
        """running, finished, stopped or failed; unknown without a manifest."""
        return str(self.manifest.get("status") or "unknown")

    @property
    def rounds_done(self) -> int:
        """Rounds finished."""
        last = max((int(r.get("round", 0)) for r in self.rounds), default=0)
        return max(last, int(self.manifest.get("rounds_done") or 0))

    def client_records(self) -> Iterator[Record]:
        """The records of clients.jsonl, one at a time; nothing when the file is not there."""
        yield from _lines(self.path / "clients.jsonl", [])

    def yardstick(self, kind: str) -> RunFiles | None:
        """The yardstick run `local` or `central` that belongs to this run, where there is one."""
        path = self.path / "yardsticks" / kind
        return RunFiles.open(path) if is_run(path) else None

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Rounds and values of one key of metrics.jsonl, where it is set and finite."""
        pairs = [(int(r["round"]), float(r[key])) for r in self.rounds if is_number(r.get(key)) and "round" in r]
        return [p[0] for p in pairs], [p[1] for p in pairs]

    def metrics(self) -> list[str]:
        """The evaluation metrics that occur, the watched one first."""
        found = {k for r in self.rounds for k, v in r.items() if k.startswith("eval_") and is_number(v)}
        for moment in ("before", "after"):
            found |= {k for k, v in (self.manifest.get(moment) or {}).items() if k.startswith("eval_") and is_number(v)}
        return sorted(found, key=lambda k: (k != self.metric, k != "eval_loss", k))

    def value(self, key: str, moment: str) -> float | None:
        """A metric `before` or `after` training: the manifest's value, else the first or last in metrics.jsonl."""
        if moment == "after" and not self.rounds_done:
            return None  # a run that never finished a round has been judged only before
        stated = (self.manifest.get(moment) or {}).get(key)
        if stated is not None and is_number(stated):
            return float(stated)
        rounds, values = self.curve(key)
        if moment == "before":
            return values[0] if rounds and rounds[0] == 0 else None
        return values[-1] if rounds and rounds[-1] > 0 else None


def read_records(path: Path) -> tuple[list[Record], list[str]]:
    """The records of a JSONL file, and remarks on what was missing or cut.

    Raises `RunError` where a line before the last is damaged.
    """
    remarks: list[str] = []
    return list(_lines(path, remarks)), remarks


def is_run(path: Path) -> bool:
    """Whether a folder is a run directory: it has a manifest, or a config beside metrics."""
    return (path / "manifest.json").is_file() or (
        (path / "config.yaml").is_file() and (path / "metrics.jsonl").is_file()
    )


def is_number(value: object) -> bool:
    """Whether a value is a finite number (a loss that became NaN is not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def no_run(path: Path) -> RunArgumentError:
    """The error for a path that is no run directory, with the runs near it."""
    if path.is_file():
        reason = "it is a file; a run is named by its folder"
    elif path.exists():
        reason = "it has no manifest.json"
    else:
        reason = "there is no such folder"
    nearby = _runs_nearby(path)
    fix = "Name a folder that `fedloom run` has written, such as runs/NAME"
    if nearby:
        fix = f"Runs nearby: {', '.join(nearby)}"
    return RunArgumentError("this is not a run directory", where=str(path), why=reason[0].upper() + reason[1:], fix=fix)


def _runs_nearby(path: Path, most: int = 5) -> list[str]:
    """Run directories in the folder itself, beside it and in runs/, the closest names first."""
    places = [path, path.parent, path.parent.parent, Path("runs")]
    found: dict[Path, str] = {}
    for place in places:
        if not place.is_dir():
            continue
        for child in [place, *sorted(c for c in place.iterdir() if c.is_dir())][:2000]:
            if is_run(child):
                found.setdefault(child.resolve(), str(child))
    names = list(found.values())
    by_name = {Path(n).name: n for n in names}
    close = [by_name[n] for n in get_close_matches(path.name, list(by_name), n=most, cutoff=0.5)]
    return [*close, *(n for n in names if n not in close)][:most]


def _read_text(path: Path, remarks: list[str]) -> str:
    if not path.is_file():
        remarks.append(f"{path.name} is missing.")
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error


def _read_json(path: Path, remarks: list[str]) -> Record:
    text = _read_text(path, remarks)
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it does not hold a JSON object")
    return value


def _parse_yaml(path: Path, text: str) -> Record:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text) if text else {}
    except YAMLError as error:
        raise _damaged(path, str(error).splitlines()[0]) from error
    return value if isinstance(value, dict) else {}


def _lines(path: Path, remarks: list[str]) -> Iterator[Record]:
    """The objects of a JSONL file; a cut last line is skipped and remarked, a damaged line before it is an error."""
    if not path.is_file():
        remarks.append(f"{path.name} is missing.")
        return
    broken: tuple[int, str] | None = None
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if broken is not None:
                raise _damaged(path, broken[1], line=broken[0])
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                broken = (number, error.msg)
                continue
            if not isinstance(record, dict):
                raise _damaged(path, "the line is no JSON object", line=number)
            yield record
    if broken is not None:
        remarks.append(f"The last line of {path.name} is cut (line {broken[0]}), as a crash leaves it; it was skipped.")


def _damaged(path: Path, why: str, line: int | None = None) -> RunError:
    where = f"{path}, line {line}" if line else str(path)
    return RunError(
        "the file is damaged",
        where=where,
        why=why[:1].upper() + why[1:],
        fix="Restore it from a copy, or continue the run from its last whole checkpoint with `fedloom resume`",
    )
