"""One template process for the runs of many tests: starting one takes seconds, loading another experiment does not."""

from __future__ import annotations

from dataclasses import replace

from fedloom.engines.pool import _Process

_start, _end = _Process.start, _Process.end
_kept: list[_Process] = []


def keep(monkeypatch) -> None:
    """Within a test, pools begin with the template that an earlier one left."""
    monkeypatch.setattr(_Process, "start", staticmethod(_again))
    monkeypatch.setattr(_Process, "end", _spare)


def begin_anew(monkeypatch) -> None:
    """Undo `keep` for the rest of a test."""
    monkeypatch.setattr(_Process, "start", _start)
    monkeypatch.setattr(_Process, "end", _end)


def _again() -> _Process:
    if _kept and _kept[0].parent.poll() is not None:
        _end(_kept.pop())
    if not _kept:
        _kept.append(_start())
    return replace(_kept[0], ready=False)


def _spare(process: _Process) -> str:
    """The template lives on, unless it has died or is still loading; a worker does not."""
    if not _kept or process.connection is not _kept[0].connection:
        return _end(process)
    if process.ready and process.parent.poll() is None:
        return "lives on"
    _kept.clear()
    return _end(process)
