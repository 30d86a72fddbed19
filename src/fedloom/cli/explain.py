"""`fedloom explain`: what an option means."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["explain"]


def explain(
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY", help="A key like local.lr, a section, or a method: algorithm.NAME.", show_default=False
        ),
    ] = "",
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema, for editors.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Explain every key.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what an option of the experiment file means: its type, default and choices.

    Example: fedloom explain data.partition.alpha
    """
    from fedloom.cli.console import print_json
    from fedloom.config.explain import describe, json_schema
    from fedloom.config.explain import explain as text_of
    from fedloom.config.keys import options

    if schema:
        print_json(json_schema())
        return
    if key.startswith("algorithm."):  # its keys are those of the method, which the file names
        from fedloom.algorithms import papers

        print_json(papers.describe(key)) if as_json else typer.echo(papers.explain(key))
        return
    keys = list(dict.fromkeys(option.key for option in options())) if every else [key]
    if as_json:
        print_json([entry for name in keys for entry in describe(name)])
        return
    typer.echo("\n\n".join(text_of(name) for name in keys))
