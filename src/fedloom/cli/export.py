"""`fedloom export`: the adapter, or the model with the adapter merged in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="The run directory.", show_default=False)],
    to: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    round: Annotated[int | None, typer.Option(help="Export this round's checkpoint; the newest when left out.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="Fold the adapter into the base model.")] = False,
) -> None:
    """Write a run's adapter for peft, or the merged model for transformers.

    Example: fedloom export runs/quickstart --merged --to my-model
    """
    from safetensors import SafetensorError

    from fedloom import api
    from fedloom.errors import UsageError
    from fedloom.tracking import export as exporting
    from fedloom.tracking.card import write_card

    exporting.refuse_existing(to)
    opened = api.open_run(run, round)
    prepared, w = opened.prepared, opened.progress.w
    try:
        if merged:
            exporting.save_merged(prepared.binding, w, prepared.tokenizer, to)
        else:
            exporting.save_adapter(prepared.binding, w, prepared.tokenizer, prepared.experiment.model.path, to)
            write_card(opened.path, to, prepared.experiment.model.path)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"it cannot be written: {why}", where=str(to), fix="choose another `--to`") from error
    print(f"{'merged model' if merged else 'adapter'} of round {opened.progress.round}: {to}")
