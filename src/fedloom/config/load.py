"""Reading an experiment file: every mistake at once, each with its line and its fix."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML

from fedloom.config.datasets import fill_in
from fedloom.config.document import Document, Place, parse
from fedloom.config.keys import sections
from fedloom.config.reference import is_reference
from fedloom.config.rules import (
    Facts,
    SampleInfo,
    TaskInfo,
    check,
    counts_alike,
    layer_choice,
    mixed_ranks,
    remote_fit,
    seeds_alone,
    selection_fit,
    unused,
)
from fedloom.config.schema import Experiment, Federation
from fedloom.config.translate import translate
from fedloom.errors import ConfigError, FedloomError, Mistake, nearest

__all__ = ["EXPERIMENT_KEYS", "dump", "is_sweep", "load", "read_document"]

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")
Clash = Callable[[Sequence[Any]], str | None]

_NAMED: tuple[Place, ...] = (("algorithm",), ("federation", "selection"))
"""What is found by a name, and has the options of what is found."""
SWEEP_KEYS = ("base", "set", "runs", "grid", "seeds", "target")
EXPERIMENT_KEYS = ("model", "data", "federation")
"""What only the one and only the other kind of file has."""


def load(
    path: Path | str,
    overrides: Iterable[str] = (),
    *,
    algorithm: Callable[[str], type[BaseModel]],
    selector: Callable[[str], type[BaseModel]],
    task: Callable[[str], TaskInfo],
    clash: Clash = lambda _: None,
    sample: Callable[[str, Literal["model", "dataset"]], SampleInfo] | None = None,
    base: Path | None = None,
) -> Experiment:
    """The experiment of a YAML file with `key.sub=value` overrides applied.

    algorithm, selector, task and sample turn a name into the options of the algorithm or of the selector, the task's facts and the
    facts of a packaged sample of a kind; each raises FedloomError for a name that does not exist. clash says why methods cannot go
    together, if they cannot. Relative paths start from `base`, by
    default the file's own folder. No weight and no row is read.

    Raises:
        ConfigError: every mistake in the file and the overrides.
    """
    path = Path(path)
    base = base or path.resolve().parent
    document = read_document(path)
    if is_sweep(document.data):
        found = ", ".join(f"`{key}`" for key in SWEEP_KEYS if key in document.data)
        what = f"this is a sweep, not an experiment: it has {found}"
        raise ConfigError(str(path), [Mistake("", 1, what, "Use `fedloom sweep`")])
    document.data = _with_kinds(document.data, Experiment, document)
    for assignment in overrides:
        document.override(assignment)
        document.data = _with_kinds(document.data, Experiment, document)
    fill_in(document, base)
    data = document.data

    experiment, faulty = _experiment(document)
    experiment._base = base
    methods = _algorithm(document, algorithm, clash) if ("algorithm",) not in faulty else None
    chosen = _selection(document, selector) if "federation" in data else None
    info = None
    if "model" in data and not faulty & {("model",), ("model", "task")}:
        info = _ask(document, ("model", "task"), lambda: task(experiment.model.task))
    waits = methods is not None and not any(getattr(m, "asynchronous", False) for m in methods[1])
    facts = Facts(task=info, sample=sample, base=base, faulty=frozenset(faulty), synchronous=waits)
    for finding in check(experiment, facts):
        document.report(tuple(finding.key.split(".")), finding.what, finding.fix)

    for method in methods[1] if methods and not faulty else []:
        for key, what, fix in getattr(method, "check", _no_checks)(experiment):
            document.report(tuple(key.split(".")), what, fix)
    if methods and not faulty and (why := mixed_ranks(experiment, methods[1])):
        document.report(("adapter", "ranks"), why, "Take ranks out, or choose an algorithm for different ranks")

    if methods and chosen and not faulty:
        for finding in selection_fit(experiment, chosen[1], waits):
            document.report(tuple(finding.key.split(".")), finding.what, finding.fix)
    fitting = (
        [*layer_choice(experiment, methods[1]), *remote_fit(experiment, methods[1], info)]
        if methods and not faulty
        else []
    )
    for finding in fitting:
        document.report(tuple(finding.key.split(".")), finding.what, finding.fix)
    if methods and not faulty and (why := seeds_alone(experiment, methods[1])):
        document.report(("local", "gradient", "upload"), why, "Set upload: delta, or choose another algorithm")

    alike = counts_alike(methods[1]) if methods and not faulty else None
    if alike and "weighting" in data["federation"] and experiment.federation.weighting.kind != "uniform":
        what = f"{alike} counts all clients alike"
        document.report(("federation", "weighting"), what, "Take it out, or set weighting: uniform")

    if document.mistakes:
        unique = dict.fromkeys(document.mistakes)
        raise ConfigError(str(path), sorted(unique, key=lambda mistake: (mistake.line == 0, mistake.line)))
    assert methods is not None and chosen is not None
    federation: dict[str, Any] = {"selection": chosen[0]}
    if alike:
        federation["weighting"] = Federation.model_validate({"rounds": 1, "weighting": "uniform"}).weighting
    changes = {"algorithm": methods[0], "federation": experiment.federation.model_copy(update=federation)}
    return experiment.model_copy(update=changes)


def _no_checks(_: Experiment) -> Iterable[tuple[str, str, str]]:
    return ()


def dump(experiment: Experiment) -> str:
    """The resolved experiment as YAML, with every option that plays a part; `load` reads it back to an equal one."""
    data = experiment.model_dump(mode="python")
    for key in unused(experiment):
        *parents, leaf = key.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        del section[leaf]
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.width = 4096
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(data, stream)
    return stream.getvalue()


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Whether a file's data is that of a sweep, though it may have a section of an experiment by mistake."""
    of_sweep, of_experiment = (sum(key in data for key in keys) for keys in (SWEEP_KEYS, EXPERIMENT_KEYS))
    return of_sweep > 0 and of_sweep >= of_experiment


def read_document(path: Path) -> Document:
    """The parsed file; raises ConfigError when nothing in it can be looked at further."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(str(path), [Mistake("", 0, "there is no such file", _near(path))]) from None
    except IsADirectoryError:
        fix = _near(path / "experiment.yaml")
        raise ConfigError(str(path), [Mistake("", 0, "this is a folder, not a file", fix)]) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        what = f"the byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise ConfigError(str(path), [Mistake("", line, what, "Save the file as UTF-8")]) from None
    except OSError as error:
        raise ConfigError(str(path), [Mistake("", 0, f"it cannot be read: {error.strerror}")]) from None
    document = parse(text)
    unreadable = any(not mistake.key for mistake in document.mistakes)
    if not unreadable and document.data is None:
        fix = "Begin with name:, model:, data: and federation:"
        document.mistakes.append(Mistake("", 1, "the file is empty", fix))
    elif not unreadable and not isinstance(document.data, dict):
        fix = "Write `name: ...` and the other keys at the start of lines"
        document.mistakes.append(Mistake("", 1, "the file is not a map of keys to values", fix))
    if unreadable or not isinstance(document.data, dict):
        raise ConfigError(str(path), document.mistakes)
    return document


def _near(path: Path) -> str | None:
    """The experiment files one may have meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml"))
    close = get_close_matches(path.name, names, n=1) or get_close_matches(path.stem, [Path(n).stem for n in names], n=1)
    if close:
        meant = next(name for name in names if name.startswith(close[0]))
        return f"Did you mean {str(folder / meant)!r}?"
    return f"In that folder: {', '.join(names[:8])}" if names else f"There is no YAML file in {folder}"


def _with_kinds(data: Any, section: type[BaseModel], document: Document, place: Place = ()) -> Any:
    """Write shorthands out: `engine: local` is {kind: local}, `adapter: {r: 4}` is {kind: lora, r: 4}."""
    if not isinstance(data, dict):
        return data
    data = dict(data)
    for name, field in section.model_fields.items():
        value, here = data.get(name), (*place, name)
        found = sections(field.annotation)
        if here in _NAMED and isinstance(value, str):
            data[name] = {"name": value}
            document.lines[*here, "name"] = document.line(here)
        if value is None or not found:
            continue
        if isinstance(value, str) and all("kind" in member.model_fields for member in found.values()):
            own = "function" in found and is_reference(value)  # the user's own, as `module:attribute`
            data[name] = value = {"kind": "function", "function": value} if own else {"kind": value}
            for key in value:
                document.lines[*here, key] = document.line(here)
        if not isinstance(value, dict):
            continue
        default = next((m.model_fields["kind"].default for m in found.values() if _has_default_kind(m)), None)
        if len(found) > 1 and default is not None and "kind" not in value:
            data[name] = value = {"kind": default, **value}
        member = found.get("") or found.get(str(value.get("kind")))
        if member is not None:
            data[name] = _with_kinds(value, member, document, here)
    return data


def _has_default_kind(section: type[BaseModel]) -> bool:
    return "kind" in section.model_fields and not section.model_fields["kind"].is_required()


def _experiment(document: Document) -> tuple[Experiment, set[Place]]:
    """The experiment, or as much of it as is right, and the places that are not."""
    try:
        return Experiment.model_validate(document.data), set()
    except ValidationError as error:
        faulty = translate(error, Experiment, document)
        return _partial(document.data, Experiment, faulty), faulty


def _partial(data: Mapping[str, Any], section: type[S], faulty: set[Place], place: Place = ()) -> S:
    """A section with only its right keys; what is required and missing is not there."""
    values: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        here = (*place, name)
        found = sections(field.annotation)
        value = data.get(name)
        if name not in data or here in faulty:
            continue
        if found and isinstance(value, dict):
            member = found.get("") or found[str(value["kind"])]
            values[name] = _partial(value, member, faulty, here)
        elif not any(wrong[: len(here)] == here for wrong in faulty):
            values[name] = value
    return section.model_construct(**values)


def _ask(document: Document, place: Place, question: Callable[[], T]) -> T | None:
    """An answer, or None and a mistake at this place."""
    try:
        return question()
    except FedloomError as error:
        what = ". ".join(part.rstrip(".") for part in (error.what, error.why) if part)
        document.report(place, what, error.fix)
        return None


def _algorithm(
    document: Document, lookup: Callable[[str], type[BaseModel]], clash: Clash
) -> tuple[dict[str, Any], list[BaseModel]] | None:
    """The algorithm's name and all its options, and those of the methods it goes with, checked; None when there was a mistake."""
    given = document.data.get("algorithm", Experiment.model_fields["algorithm"].default)
    place: Place = ("algorithm",)
    others = given.get("with", [])
    others = others if isinstance(others, list) else [others]
    found = [_method(document, {k: v for k, v in given.items() if k != "with"}, place, lookup)]
    for i, other in enumerate(others):
        spec = {"name": other} if isinstance(other, str) else other
        if not isinstance(spec, dict):
            fix = "Write `with: fedadam`, or `with: [{name: fedadam, lr: 0.01}]`"
            document.report((*place, "with"), f"{other!r} is no method", fix)
            return None
        found.append(
            _method(
                document, spec, (*place, "with", i) if isinstance(given["with"], list) else (*place, "with"), lookup
            )
        )
    if any(method is None for method in found):
        return None
    specs, models = zip(*(method for method in found if method), strict=True)
    if why := clash([type(model) for model in models]):
        document.report((*place, "with"), f"these methods cannot go together: {why}", "Take one of them out")
        return None
    return (specs[0] | {"with": list(specs[1:])} if len(specs) > 1 else specs[0]), list(models)


def _selection(document: Document, lookup: Callable[[str], type[BaseModel]]) -> tuple[dict[str, Any], BaseModel] | None:
    """The selector's name and all its options, checked; None when there was a mistake."""
    federation = document.data["federation"]
    given = federation.get("selection", {"name": "uniform"}) if isinstance(federation, dict) else None
    place: Place = ("federation", "selection")
    return _method(document, given, place, lookup, "selector", "selection: oort") if isinstance(given, dict) else None


def _method(
    document: Document,
    given: Mapping[str, Any],
    place: Place,
    lookup: Callable[[str], type[BaseModel]],
    kind: str = "algorithm",
    example: str = "algorithm: fedavg",
) -> tuple[dict[str, Any], BaseModel] | None:
    """A method's name and all its options, checked; None when there was a mistake."""
    name = given.get("name")
    if not isinstance(name, str) or not name:
        what = (
            "this key is required, and missing"
            if "name" not in given
            else f"{name!r} is not the name of {'an' if kind == 'algorithm' else 'a'} {kind}"
        )
        key, _, name = example.partition(": ")
        document.report((*place, "name"), what, f"Write `{example}`, or `{key}: {{name: {name}}}`")
        return None
    options = _ask(document, (*place, "name"), lambda: lookup(name))
    if options is None:
        return None
    values = {key: value for key, value in given.items() if key != "name"}
    unknown = [key for key in values if key not in options.model_fields]
    for key in unknown:
        fix = nearest(key, list(options.model_fields)) if options.model_fields else f"{name} has no options"
        document.report((*place, key), f"there is no such option of {name}", fix)
    try:
        known = {key: value for key, value in values.items() if key not in unknown}
        model = options.model_validate(known, strict=True)
    except ValidationError as error:
        translate(error, options, document, place)
        return None
    return None if unknown else ({"name": name, **model.model_dump()}, model)
