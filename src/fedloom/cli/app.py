"""The `fedloom` command: its verbs, and what they share."""

from __future__ import annotations

import importlib
import warnings
from typing import Annotated

import typer

from fedloom.cli.console import Verbs

__all__ = ["app", "main"]

# In the order of the help: (the verb, the function of `fedloom.cli.VERB`). Every file is light to import.
VERBS = (
    ("run", "run"),
    ("resume", "resume"),
    ("validate", "validate"),
    ("eval", "evaluate"),
    ("report", "report"),
    ("compare", "compare"),
    ("sweep", "sweep"),
    ("export", "export"),
    ("data", "app"),
    ("devices", "app"),
    ("import", "app"),
    ("federation", "app"),
    ("serve", "serve"),
    ("join", "join"),
    ("status", "status"),
    ("stop", "stop"),
    ("logs", "logs"),
    ("list", "list_"),
    ("explain", "explain"),
    ("doctor", "doctor"),
)

app = typer.Typer(
    name="fedloom",
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"fedloom {version('fedloom')}")
        except PackageNotFoundError:
            typer.echo("fedloom, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def _fedloom(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune models where the data lives.

    Example: fedloom run examples/quickstart.yaml
    """


def _register() -> None:
    for verb, name in VERBS:
        function = getattr(importlib.import_module(f"fedloom.cli.{verb}"), name)
        if isinstance(function, typer.Typer):
            app.add_typer(function, name=verb)
        else:
            app.command(verb)(function)


_register()


def main() -> None:
    """The console script."""
    warnings.simplefilter("ignore", FutureWarning)  # between libraries; the user cannot act on it
    app(prog_name="fedloom")
