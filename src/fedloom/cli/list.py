"""`fedloom list`: what a name in the experiment file can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

__all__ = ["list_"]


def list_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What to list; all kinds are named without it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is: algorithms, tasks, models, datasets, partitions, templates, optimizers, schedules,
    engines, selectors, devices.

    Example: fedloom list algorithms
    """
    from fedloom.cli.console import print_json
    from fedloom.errors import UsageError, nearest

    if kind and kind not in KINDS:
        raise UsageError(f"there is no kind {kind!r} to list", fix=nearest(kind, list(KINDS)))
    if not kind:
        print_json(list(KINDS)) if as_json else typer.echo("\n".join(KINDS))
        return
    rows = KINDS[kind]()
    if as_json:
        print_json(rows)
        return
    if kind == "algorithms":
        from fedloom.algorithms.papers import overview

        typer.echo(overview(rows))
        return
    wide = max(len(str(row["name"])) for row in rows)
    for row in rows:
        typer.echo(f"{row['name']:<{wide}}  {row.get('title', '')}".rstrip())
        for detail in _details(row):
            typer.echo(f"{'':<{wide}}  {detail}")


def _details(row: dict[str, Any]) -> list[str]:
    """What else is known of a row, a line each."""
    lines = [
        f"{key}: {_text(value)}"
        for key, value in row.items()
        if key not in ("name", "title", "bytes", "rows") and value
    ]
    if row.get("bytes"):
        size = f"{row['bytes'] / 1e6:.1f} MB to download"
        lines.insert(0, f"{row['rows']:,} rows, {size}" if row.get("rows") else size)
    return lines


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _algorithms() -> list[dict[str, Any]]:
    from fedloom.algorithms import catalogue

    return catalogue()


def _tasks() -> list[dict[str, Any]]:
    from fedloom.tasks import catalogue

    return catalogue()


def _samples(kind: str) -> list[dict[str, Any]]:
    from fedloom.data.samples import SAMPLES

    return [
        {
            "name": f"sample:{name}",
            "title": sample.description,
            "licence": sample.licence,
            "bytes": sample.bytes,
            "rows": sample.rows,
            "columns": list(sample.columns),
        }
        for name, sample in SAMPLES.items()
        if sample.kind == kind
    ]


def _datasets() -> list[dict[str, Any]]:
    from fedloom.config.datasets import catalogue

    return [*_samples("dataset"), *catalogue()]


def _selectors() -> list[dict[str, Any]]:
    from fedloom.selection import catalogue

    return catalogue()


def _kinds(key: str) -> list[dict[str, Any]]:
    """The kinds of a section."""
    from fedloom.config.keys import options, sections

    field = next(option.field for option in options() if option.key == key)
    rows = []
    for kind, section in sections(field.annotation).items():
        name = kind or str(section.model_fields["kind"].default)
        keys = [inner for inner in section.model_fields if inner != "kind"]
        rows.append({"name": name, "title": (section.__doc__ or "").partition("\n")[0], "keys": keys})
    return rows


def _words(key: str) -> list[dict[str, Any]]:
    """The choices of a key."""
    from fedloom.config.keys import choices, options

    field = next(option.field for option in options() if option.key == key)
    return [{"name": word} for word in choices(field.annotation)]


KINDS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "algorithms": _algorithms,
    "tasks": _tasks,
    "models": lambda: _samples("model"),
    "datasets": _datasets,
    "adapters": lambda: _kinds("adapter"),
    "partitions": lambda: _kinds("data.partition"),
    "templates": lambda: _words("data.template"),
    "optimizers": lambda: _words("local.optimizer"),
    "schedules": lambda: _words("local.schedule.kind"),
    "engines": lambda: _kinds("engine"),
    "selectors": _selectors,
    "devices": lambda: _kinds("devices"),
}
