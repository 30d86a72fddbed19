"""`fedloom devices`: files of devices, drawn at random or taken over from FedScale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedloom.devices.population import Population

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Make files of devices, for `devices: {kind: file, path: FILE}`.")

_To = Annotated[Path, typer.Argument(metavar="FILE.parquet", help="A new file.", show_default=False)]


@app.command()
def generate(
    to: _To,
    devices: Annotated[int, typer.Option(min=1, help="How many.", show_default=False)],
    days: Annotated[int, typer.Option(min=1, help="Days after which the times online repeat.")] = 7,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, other devices.")] = 0,
) -> None:
    """Draw phones with the published shapes of real ones, and write them to a file.

    An experiment draws its own with `devices: generated`; a file lets several federations have the same.

    Example: fedloom devices generate phones.parquet --devices 1000
    """
    _check(to)
    from fedloom.devices.generate import generate as draw

    _write(draw(devices, days=days, seed=seed), to)


@app.command("import")
def import_(
    to: _To,
    capacity: Annotated[
        Path, typer.Option(help="FedScale's client_device_capacity.", metavar="FILE", show_default=False)
    ],
    behaviour: Annotated[
        Path | None, typer.Option(help="FedScale's client_behave_trace; always online without it.", metavar="FILE")
    ] = None,
) -> None:
    """Take FedScale's two files of devices over. They are pickles; nothing in them is run.

    Example: fedloom devices import phones.parquet --capacity client_device_capacity --behaviour client_behave_trace
    """
    _check(to)
    from fedloom.devices.fedscale import read_fedscale

    found, notes = read_fedscale(capacity, behaviour)
    _write(found, to)
    for note in notes:
        typer.echo(note)


def _check(to: Path) -> None:
    from fedloom.errors import UsageError

    if to.suffix.lower() != ".parquet":
        raise UsageError(
            "devices are in a .parquet file", where=str(to), fix=f"Name it {to.with_suffix('.parquet').name}"
        )
    if to.exists():
        raise UsageError("the file exists, and nothing is overwritten", where=str(to), fix="Choose another name")


def _write(population: Population, to: Path) -> None:
    from fedloom.cli.inspection import device_lines
    from fedloom.devices.describe import describe
    from fedloom.devices.files import write_devices
    from fedloom.errors import UsageError

    try:
        write_devices(population, to)
    except OSError as error:
        raise UsageError(f"the file cannot be written: {error.strerror}", where=str(to)) from error
    typer.echo(f"{to}: {len(population):,} devices")
    for name, text in device_lines(describe(population)):
        typer.echo(f"  {name:<16}{text}")
    typer.echo(f"Use them: devices: {{kind: file, path: {to}}}")
