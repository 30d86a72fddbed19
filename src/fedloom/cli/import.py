"""`fedloom import`: files of other systems as experiment files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Turn files of other systems into experiment files.")


@app.callback()
def _import() -> None:
    """Turn files of other systems into experiment files."""


@app.command()
def fedscale(
    conf: Annotated[Path, typer.Argument(metavar="conf.yml", help="FedScale's file.", show_default=False)],
    to: Annotated[Path, typer.Option(metavar="FILE.yaml", help="A new experiment file.", show_default=False)] = Path(
        "experiment.yaml"
    ),
) -> None:
    """Write an experiment file from FedScale's conf.yml, and say of every option that has no meaning here why.

    Which rows and which model are yours to fill in.

    Example: fedloom import fedscale benchmark/configs/femnist/conf.yml --to femnist.yaml
    """
    from fedloom.config.fedscale import convert
    from fedloom.errors import UsageError
    from fedloom.files import write_new

    given = _read(conf)
    try:
        made = convert(given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"an option has no value of its kind: {error}", where=str(conf)) from error
    text = _yaml(made.experiment)
    header = f"# From {conf.name} of FedScale. To fill in: {', '.join(made.fill_in)}.\n"
    try:
        write_new(to, header + text)
    except FileExistsError:
        raise UsageError(
            "the file exists, and nothing is overwritten", where=str(to), fix="Choose another --to"
        ) from None
    except OSError as error:
        raise UsageError(f"the file cannot be written: {error.strerror}", where=str(to)) from error
    typer.echo(f"{to}: fill in {', '.join(made.fill_in)}, then `fedloom validate {to}`")
    for note in made.notes:
        typer.echo(f"  {note}")


def _read(conf: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from fedloom.errors import UsageError

    try:
        found = YAML(typ="safe").load(conf.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}", where=str(conf)) from error
    except (UnicodeDecodeError, YAMLError) as error:
        raise UsageError("this is no YAML", where=str(conf), why=str(error).partition("\n")[0]) from error
    if not isinstance(found, dict) or not found.get("job_conf"):
        raise UsageError("there is no job_conf in it", where=str(conf), fix="Give a conf.yml of FedScale")
    return found


def _yaml(experiment: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(experiment, stream)
    return stream.getvalue()
