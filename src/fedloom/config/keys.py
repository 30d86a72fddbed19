"""What the schema says about a key: its section, its kinds, and its type in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedloom.config.schema import Experiment

__all__ = ["Option", "choices", "dotted", "kind_of", "options", "plain_type", "sections", "show", "strip", "type_of"]


@dataclass(frozen=True)
class Option:
    """One key of the experiment file; a key of several kinds (`data.partition.clients`) is one option per kind."""

    key: str
    field: FieldInfo
    kind: str | None


def dotted(path: Sequence[str | int]) -> str:
    """The name of a place in the file: ("local", "betas", 1) is `local.betas[1]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def strip(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without Annotated, Union and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return strip(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [part for member in get_args(annotation) for part in strip(member)]
    return [] if annotation in (None, type(None)) else [annotation]


def kind_of(section: type[BaseModel]) -> tuple[str, ...]:
    """The values of the section's `kind`; empty when it has none."""
    field = section.model_fields.get("kind")
    return tuple(map(str, get_args(field.annotation))) if field else ()


def sections(annotation: Any) -> dict[str, type[BaseModel]]:
    """The sections a field may hold, by kind; the one section of a field without kinds is under ""."""
    found = [part for part in strip(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
    if len(found) == 1:
        return {"": found[0]}
    return {kind: section for section in found for kind in kind_of(section)}


def choices(annotation: Any) -> tuple[str, ...]:
    """Every word that a field accepts literally."""
    return tuple(str(word) for part in strip(annotation) if get_origin(part) is Literal for word in get_args(part))


@cache
def options() -> tuple[Option, ...]:
    """Every key of the experiment file, sections first, in the file's order."""
    return tuple(_walk(Experiment, "", None))


def _walk(section: type[BaseModel], prefix: str, kind: str | None) -> Iterator[Option]:
    for name, field in section.model_fields.items():
        yield Option(prefix + name, field, kind)
        for inner_kind, inner in sections(field.annotation).items():
            yield from _walk(inner, f"{prefix}{name}.", inner_kind or None)


def show(value: object) -> str:
    """A value as one would write it in the file, short."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping) and not value:
        return "{}"
    text = repr(value)
    if len(text) <= 60:
        return text
    if isinstance(value, Mapping):
        return "a map"
    return f"a list of {len(value)} items" if isinstance(value, list) else f"{text[:57]}..."


def type_of(field: FieldInfo) -> str:
    """The type of a field in plain words: "a whole number of at least 1, or null"."""
    text = plain_type(field.annotation, field.metadata)
    return f"{text}, or null" if type(None) in get_args(field.annotation) else text


def plain_type(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """An annotation in plain words: "a number of at least 0 and below 1"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return plain_type(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        if any(isinstance(part, type) and issubclass(part, BaseModel) for part in strip(annotation)):
            return "a section"
        return " or ".join(plain_type(part, metadata) for part in arguments if part is not type(None))
    if origin is Literal:
        return f"`{arguments[0]}`" if len(arguments) == 1 else f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        length = _limits(metadata)
        count = f"{length['min_length']} " if length.get("min_length") == length.get("max_length", 0) else ""
        return f"a list of {count}{_plural(plain_type(arguments[0]))}"
    if origin is dict:
        return "a map" if arguments[1] is Any else f"a map of names to {plain_type(arguments[1])}"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _bounds(_limits(metadata))
    if annotation is str:
        return "text" + _text_bounds(_limits(metadata))
    words = {bool: "true or false", Any: "any value"}
    return words.get(annotation, "a section")


def _plural(words: str) -> str:
    """ "a number above 0" in a list: "numbers above 0"."""
    if words.startswith(("a number", "a whole number")):
        head, number, tail = words.removeprefix("a ").partition("number")
        return f"{head}{number}s{tail}"
    return words.replace("text", "texts", 1) if words.startswith("text") else words


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    """The constraints in a field's metadata by name: ge, gt, le, lt, min_length, max_length, pattern."""
    found: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            found |= _limits(item.metadata)
        else:
            for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern"):
                if getattr(item, name, None) is not None:
                    found[name] = getattr(item, name)
    return found


def _bounds(limits: Mapping[str, Any]) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "at most", "lt": "below"}
    parts = [f"{word} {_number(limits[name])}" for name, word in words.items() if name in limits]
    return f" {' and '.join(parts)}" if parts else ""


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _text_bounds(limits: Mapping[str, Any]) -> str:
    most = f" of at most {limits['max_length']} characters" if "max_length" in limits else ""
    if "pattern" in limits:
        return f"{most} that matches {limits['pattern']}"
    return f" that is not empty{most}" if limits.get("min_length") else most
