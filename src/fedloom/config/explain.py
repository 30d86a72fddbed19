"""What every option means, from the schema: as text for people, as a JSON Schema for editors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedloom.config.keys import Option, choices, kind_of, options, sections, show, type_of
from fedloom.config.schema import Experiment
from fedloom.errors import UsageError

__all__ = ["describe", "explain", "json_schema"]


def explain(key: str = "") -> str:
    """What a dotted key means: description, type, default and choices; for a section, its kinds and its keys.

    A last name alone (`alpha`) explains every key of that name; nothing explains the whole file.

    Raises:
        UsageError: no such key; the nearest is named.
    """
    if not key:
        return "\n".join([f"{Experiment.__doc__}", *_keys(_find(key))])
    found = _find(key)
    keys = dict.fromkeys(option.key for option in found)
    return "\n\n".join(_explain([option for option in found if option.key == name]) for name in keys)


def describe(key: str = "") -> list[dict[str, Any]]:
    """What `explain` says, as data: an entry per key and kind."""
    return [
        {
            "key": option.key,
            "kind": option.kind,
            "description": option.field.description or "",
            "type": type_of(option.field),
            "required": option.field.is_required(),
            "default": None if option.field.is_required() else _plain(option.field.default),
            "choices": list(choices(option.field.annotation) or _kind_names(option.field.annotation)),
        }
        for option in _find(key)
    ]


def _plain(default: Any) -> Any:
    return default.model_dump(mode="json") if isinstance(default, BaseModel) else default


def _kind_names(annotation: Any) -> list[str]:
    """The kinds of a section; none of a section without kinds."""
    return [kind for kind in sections(annotation) if kind]


def _find(key: str) -> list[Option]:
    if not key:
        return [option for option in options() if "." not in option.key]
    found = [option for option in options() if option.key == key]
    if not found:
        found = [option for option in options() if option.key.rpartition(".")[2] == key != "kind"]
    if not found:
        raise _no_such_key(key)
    return found


def _explain(found: list[Option]) -> str:
    """One key; a key of several kinds says what it means in each, once."""
    first = found[0]
    if first.key.endswith(".kind") and len(found) > 1:
        parent = next(option for option in options() if option.key == first.key.removesuffix(".kind"))
        return "\n".join([first.key, f"  type: {_kind_line(found)}", *_kinds(parent.field)])
    about = {_about(option): [o.kind for o in found if o.kind and _about(o) == _about(option)] for option in found}
    lines = [first.key]
    for text, kinds in about.items():
        lines += (
            [f"  [{first.key.split('.')[-2]}: {', '.join(kinds)}]"]
            if kinds and len(kinds) < _siblings(first.key)
            else []
        )
        lines += [f"  {line}" for line in text.splitlines()]
    inner = [option for option in options() if option.key.rpartition(".")[0] == first.key]
    return "\n".join([*lines, *_kinds(first.field), *([f"  {line}" for line in _keys(inner)] if inner else [])])


def _kind_line(found: Iterable[Option]) -> str:
    """What `kind` may be: "one of lora, full; default: lora"."""
    fields = {option.kind: option.field for option in found if option.key.endswith(".kind")}
    default = next((kind for kind, field in fields.items() if not field.is_required()), None)
    return f"one of {', '.join(map(str, fields))}; {f'default: {default}' if default else 'required'}"


def _siblings(key: str) -> int:
    parent = next(option for option in options() if option.key == key.rpartition(".")[0])
    return len(sections(parent.field.annotation))


def _about(option: Option) -> str:
    field = option.field
    about = [field.description or "", f"type: {type_of(field)}", _default(field)]
    return "\n".join(line for line in about if line)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if sections(field.annotation):
        return "may be left out" if field.default is not None else "default: none"
    value = field.default
    return f"default: {value if isinstance(value, str) else 'null' if value is None else show(value)}"


def _kinds(field: FieldInfo) -> list[str]:
    found = sections(field.annotation)
    if len(found) < 2:
        return []
    wide = max(map(len, found))
    return ["  kinds:", *(f"    {kind:<{wide}}  {_first_line(section.__doc__)}" for kind, section in found.items())]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _keys(inner: Iterable[Option]) -> list[str]:
    """A line a key: name, type, default, and the kinds it belongs to; two where kinds differ in that."""
    inner = list(inner)
    rows: dict[tuple[str, str], list[str]] = {}
    for option in inner:
        name, about = option.key.rpartition(".")[2], f"{type_of(option.field)}; {_default(option.field)}"
        rows.setdefault((name, "" if name == "kind" and option.kind else about), []).extend(
            [option.kind] if option.kind else []
        )
    every = {option.kind for option in inner if option.kind}
    wide = max(len(name) for name, _ in rows)
    lines = ["keys:"]
    for (name, about), kinds in rows.items():
        kinds = list(dict.fromkeys(kinds))
        only = f" ({', '.join(kinds)})" if kinds and len(kinds) < len(every) else ""
        lines.append(f"  {name:<{wide}}  {about or _kind_line(inner)}{only}")
    return lines


def _no_such_key(key: str) -> UsageError:
    keys = list(dict.fromkeys(option.key for option in options()))
    leaves = {name.rpartition(".")[2]: name for name in keys}
    close = get_close_matches(key, keys, n=1, cutoff=0.6)
    leaf = get_close_matches(key.rpartition(".")[2], list(leaves), n=1, cutoff=0.6)
    meant = close[0] if close else leaves[leaf[0]] if leaf else None
    home = key.rpartition(".")[0]
    parent = [name for name in keys if home and name.rpartition(".")[0] == home]
    fix = (
        f"Did you mean {meant!r}?"
        if meant
        else f"Keys there: {', '.join(parent)}"
        if parent
        else "See `fedloom explain --all`"
    )
    return UsageError(f"there is no key {key!r} in an experiment file", fix=fix)


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of an experiment file, shorthands included, for editors."""
    schema = Experiment.model_json_schema()
    word = {"type": "string", "minLength": 1}
    method = {"anyOf": [word, {"type": "object", "required": ["name"], "properties": {"name": word}}]}
    others = {"anyOf": [*method["anyOf"], {"type": "array", "items": method}]}
    whole = {"type": "object", "required": ["name"], "properties": {"name": word, "with": others}}
    named = {"algorithm": [word, whole], "selection": method["anyOf"]}
    for owner in (schema, schema["$defs"]["Federation"]):
        for name in named.keys() & owner["properties"].keys():
            owner["properties"][name]["anyOf"] = named[name]
            for keyword in ("type", "additionalProperties"):
                owner["properties"][name].pop(keyword)
    for owner, section in _owners(schema):
        for name, field in section.model_fields.items():
            words = _kind_words(field)
            if words:
                about = {
                    key: owner["properties"][name].pop(key)
                    for key in ("description", "default")
                    if key in owner["properties"][name]
                }
                short: list[dict[str, Any]] = [{"enum": words}]
                if "function" in sections(field.annotation):
                    short.append({"type": "string", "pattern": "^[^:]+:[^:]+$"})
                owner["properties"][name] = {**about, "anyOf": [*short, owner["properties"][name]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _owners(schema: dict[str, Any]) -> Iterator[tuple[dict[str, Any], type[BaseModel]]]:
    """Every section's part of the schema."""
    yield schema, Experiment
    found = {s.__name__: s for option in options() for s in sections(option.field.annotation).values()}
    yield from ((schema["$defs"][name], section) for name, section in found.items())


def _kind_words(field: FieldInfo) -> list[str]:
    """The kinds that can stand for a whole section, because they need no other key: `engine: local`."""
    members = {section.__name__: section for section in sections(field.annotation).values()}
    return [
        kind
        for section in members.values()
        if all(name == "kind" or not inner.is_required() for name, inner in section.model_fields.items())
        for kind in kind_of(section)
    ]
