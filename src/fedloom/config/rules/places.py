"""Rules on what an experiment names outside itself: samples, files, folders, modules. Nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from fedloom.config.reference import find_module, is_reference
from fedloom.config.rules.rule import DATA_SUFFIXES, PARTITION_SUFFIXES, Facts, Finding, SampleInfo, rule
from fedloom.config.schema import (
    AdaptedWeighting,
    ColumnPartition,
    DirichletPartition,
    EpisodesWeighting,
    Experiment,
    FileDevices,
    FunctionWeighting,
    GivenPartition,
)
from fedloom.errors import FedloomError, nearest

__all__: list[str] = []

_UNREADABLE = (
    ".txt",
    ".tsv",
    ".xls",
    ".xlsx",
    ".xml",
    ".yaml",
    ".yml",
    ".pkl",
    ".npy",
    ".gz",
    ".zip",
    ".tar",
    ".zst",
    ".db",
)
_HUB_CONFIGURATION = re.compile(r"[\w.-]+/[\w.-]+:[\w.-]+")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".onnx")


@rule("model.path")
def _model(e: Experiment, facts: Facts) -> Iterator[Finding]:
    path = e.model.path
    if path.startswith("sample:"):
        yield from _sample_mistake("model.path", _ask_sample(path, "model", facts))
    elif mistake := _not_a_reference("model.path", path, facts.base):
        yield mistake
    elif Path(path).suffix.lower() in _WEIGHTS:
        yield Finding(
            "model.path", f"{path!r} names a file of weights", "Give the folder that holds it and config.json"
        )
    elif _is_path(path) and not _at(path, facts.base).is_dir():
        yield Finding("model.path", f"there is no folder {path!r} in {facts.base}", _near(path, facts.base))


@rule("data.source")
def _source(e: Experiment, facts: Facts) -> Iterator[Finding]:
    source, suffix = e.data.source, Path(e.data.source).suffix.lower()
    if e.engine.kind == "remote":  # every client has its own
        return
    if source.startswith("sample:"):
        yield from _sample_mistake("data.source", _ask_sample(source, "dataset", facts))
    elif _HUB_CONFIGURATION.fullmatch(source) and ".py:" not in source:
        return
    elif mistake := _not_a_reference("data.source", source, facts.base):
        yield mistake
    elif suffix in _UNREADABLE and not _at(source, facts.base).is_dir():
        yield Finding("data.source", f"a {suffix} file is not read", f"Convert it to one of {', '.join(DATA_SUFFIXES)}")
    elif (suffix in DATA_SUFFIXES or _is_path(source)) and not re.search(r"[*?\[]", source):
        yield from _file("data.source", source, facts.base)


@rule("devices")
def _devices_file(e: Experiment, facts: Facts) -> Iterator[Finding]:
    if isinstance(e.devices, FileDevices):
        yield from _file("devices.path", e.devices.path, facts.base)


@rule("data.partition")
def _partition_file(e: Experiment, facts: Facts) -> Iterator[Finding]:
    if isinstance(e.data.partition, GivenPartition):
        file = e.data.partition.file
        yield from _file("data.partition.file", file, facts.base)
        suffix, method = Path(file).suffix.lower(), e.data.partition.method
        if suffix not in (".json", *PARTITION_SUFFIXES):
            what = f"{file!r} is neither a JSON nor an HDF5 file"
            yield Finding("data.partition.file", what, 'Write {"client id": [row, ...], ...} to a .json file')
        elif suffix == ".json" and method is not None:
            yield Finding(
                "data.partition.method", "a JSON file holds one partition, so it has no methods", "Take it out"
            )
        elif suffix != ".json" and method is None:
            what = f"{file!r} may hold several partitions, and none is named"
            yield Finding("data.partition", what, "Add the name of one: `method: uniform_client_1000`")


@rule("data.source", "data.partition")
def _partition_columns(e: Experiment, facts: Facts) -> Iterator[Finding]:
    partition = e.data.partition
    if isinstance(partition, ColumnPartition):
        yield from _unknown_columns(e, facts, {"data.partition.column": partition.column})
    if isinstance(partition, DirichletPartition | GivenPartition) and partition.label is not None:
        yield from _unknown_columns(e, facts, {"data.partition.label": partition.label})


@rule("data.source", "federation.weighting")
def _weighting(e: Experiment, facts: Facts) -> Iterator[Finding]:
    weighting = e.federation.weighting
    if isinstance(weighting, EpisodesWeighting | AdaptedWeighting):
        yield from _unknown_columns(e, facts, {"federation.weighting.column": weighting.column})
    if isinstance(weighting, FunctionWeighting):
        key, function = "federation.weighting.function", weighting.function
        if mistake := _not_a_reference(key, function, facts.base):
            yield mistake
        elif not is_reference(function):
            yield Finding(key, f"{function!r} is not module:attribute", f"Write it like my_weights:{function}")


@rule("data.source", "data.where")
def _where_columns(e: Experiment, facts: Facts) -> Iterator[Finding]:
    yield from _unknown_columns(e, facts, {f"data.where.{column}": column for column in e.data.where})


@rule("data.source", "data.fields")
def _field_columns(e: Experiment, facts: Facts) -> Iterator[Finding]:
    for field in e.data.fields:
        for column in filter(str.strip, e.data.columns_of(field)):
            yield from _unknown_columns(e, facts, {f"data.fields.{field}": column})


@rule("data.source", "data.fields", "model.task")
def _required_fields(e: Experiment, facts: Facts) -> Iterator[Finding]:
    columns = _sample_columns(e, facts)
    for field in facts.task.required_fields if facts.task and columns else ():
        if field not in e.data.fields and field not in columns:
            what = f"{e.model.task} reads the field {field!r}, and {e.data.source} has no column of that name"
            fix = f"Add `{field}: COLUMN` to data.fields, with one of {', '.join(columns)}"
            yield Finding("data.fields", what, fix)


def _sample_columns(e: Experiment, facts: Facts) -> tuple[str, ...]:
    """The columns of a packaged sample, which are known before it is fetched; of other sources nothing is known yet."""
    found = _ask_sample(e.data.source, "dataset", facts) if e.data.source.startswith("sample:") else None
    return () if found is None or isinstance(found, FedloomError) else found.columns


def _unknown_columns(e: Experiment, facts: Facts, used: dict[str, str]) -> Iterator[Finding]:
    columns = _sample_columns(e, facts)
    for key, column in used.items():
        if columns and column not in columns:
            yield Finding(key, f"{e.data.source} has no column {column!r}", nearest(column, columns))


def _ask_sample(text: str, kind: str, facts: Facts) -> SampleInfo | FedloomError | None:
    if facts.sample is None:
        return None
    try:
        return facts.sample(text.removeprefix("sample:"), "model" if kind == "model" else "dataset")
    except FedloomError as error:
        return error


def _sample_mistake(key: str, answer: object) -> Iterator[Finding]:
    if isinstance(answer, FedloomError):
        yield Finding(key, answer.what, answer.fix)


def _not_a_reference(key: str, text: str, base: Path) -> Finding | None:
    """A mistake in what has a colon: a URL, or a `module:attribute` that is malformed or whose module is missing."""
    if "://" in text:
        return Finding(key, "addresses are not downloaded from", "Download it, and give the path of the file or folder")
    if is_reference(text):
        missing = find_module(text, base)
        return Finding(key, missing.what, missing.fix) if missing else None
    if ":" not in text or re.match(r"[A-Za-z]:", text):
        return None
    module, _, attribute = text.partition(":")
    if module.lower() == "sample":
        return Finding(key, f"{text!r} is not a sample", f"Write sample:{attribute.strip()}")
    meant = f"{module.removesuffix('.py').replace('/', '.').replace('-', '_')}:{attribute or 'NAME'}"
    return Finding(key, f"{text!r} is not module:attribute", f"Write it like {meant}" if is_reference(meant) else None)


def _is_path(text: str) -> bool:
    """Whether a text can only be a path, not a hub name."""
    return text.startswith((".", "/", "~")) or "\\" in text or bool(re.match(r"[A-Za-z]:", text))


def _at(text: str, base: Path) -> Path:
    return base / Path(text).expanduser()


def _file(key: str, text: str, base: Path) -> Iterator[Finding]:
    path = _at(text, base)
    if not path.exists():
        yield Finding(key, f"there is no file or folder {text!r} in {base}", _near(text, base))
    elif path.is_file() and path.stat().st_size == 0:
        yield Finding(key, f"the file {text!r} is empty")


def _near(text: str, base: Path) -> str | None:
    """The file one may have meant."""
    path = _at(text, base)
    if not path.parent.is_dir():
        return f"The folder {path.parent} does not exist"
    close = get_close_matches(path.name, sorted(file.name for file in path.parent.iterdir()), n=1)
    return f"Did you mean {str(Path(text).with_name(close[0]))!r}?" if close else None
