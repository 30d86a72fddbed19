"""An experiment file as plain data, with the line of every key.

YAML 1.2's core schema: `1e-3` is a number, `no` and `on` are words, a date is a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from fedloom.config.keys import dotted
from fedloom.errors import Mistake

__all__ = ["Document", "Place", "parse"]

Place = tuple[str | int, ...]
"""Where a value stands: ("local", "betas", 1)."""

_NODES = 20_000
"""An experiment has dozens of nodes; aliases of aliases could make billions."""

_TAGS = frozenset(["map", "seq", "str", "null", "bool", "int", "float", "timestamp", "value", "merge"])


@dataclass
class Document:
    """The data of a file, the line of each place in it (0: set by an override), and the mistakes met so far."""

    data: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)
    unreadable: set[Place] = field(default_factory=set)

    def line(self, place: Place) -> int:
        """The line of a place; of the section it belongs in, when it is not in the file."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)

    def report(self, place: Place, what: str, fix: str | None = None) -> None:
        """Note a mistake at a place."""
        self.mistakes.append(Mistake(dotted(place), self.line(place), what, fix))

    def override(self, assignment: str) -> None:
        """Apply `key.sub=value`; the value is YAML, sections on the way are made."""
        key, equals, text = assignment.partition("=")
        place: Place = tuple(key.strip().split("."))
        if not equals or not all(place):
            self.mistakes.append(Mistake(assignment, 0, "this is not key.sub=value", "Write it like local.lr=1e-3"))
        elif not text.strip():
            self.mistakes.append(Mistake(key, 0, "no value is given", f"Write {key}=null to take it out"))
        else:
            value = parse(text)
            self.mistakes += [Mistake(key, 0, mistake.what, mistake.fix) for mistake in value.mistakes]
            if not value.mistakes:
                self._set(place, value.data)

    def _set(self, place: Place, value: Any) -> None:
        section: Any = self.data
        for depth, name in enumerate(place[:-1], start=1):
            inner = section.get(name)
            if inner is None:
                inner = section[name] = {}
                self.lines[place[:depth]] = 0
            if not isinstance(inner, dict):
                what = f"`{dotted(place[:depth])}` is a value, not a section"
                self.mistakes.append(Mistake(dotted(place), 0, what, f"Set it whole: {dotted(place[:depth])}=VALUE"))
                return
            section = inner
        section[place[-1]] = value
        self.lines = {at: line for at, line in self.lines.items() if at[: len(place)] != place}
        self.lines[place] = 0


def parse(text: str) -> Document:
    """Read one YAML document; what cannot be read is in `mistakes`."""
    document = Document(lines={(): 1})
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
        document.mistakes.append(Mistake("", line, what, "Remove it"))
    except MarkedYAMLError as error:
        document.mistakes.append(_syntax_mistake(error))
    except YAMLError as error:
        document.mistakes.append(Mistake("", 1, f"this is not YAML: {error}"))
    except RecursionError:
        document.mistakes.append(Mistake("", 1, "this is nested too deeply to be an experiment"))
    else:
        document.data = _Builder(document).build(node, (), ()) if node is not None else None
    return document


def _syntax_mistake(error: MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = error.problem or str(error)
    fix = None
    if "\\t" in problem or "tab" in problem.lower():
        fix = "Indent with spaces; a tab is not allowed there"
    elif "mapping values are not allowed" in problem:
        fix = "Put text that contains `: ` in quotes, and line keys up under each other"
    elif "single document" in str(error.context):
        problem, fix = "a second document begins here", "Keep one experiment a file; remove the `---`"
    elif "undefined alias" in problem:
        fix = "Put text that begins with * in quotes"
    elif "expected <block end>" in problem or "expected ',' or" in problem or "simple key" in problem:
        fix = "Check the indentation here and the brackets and quotes on the lines above"
    return Mistake("", line, f"the YAML cannot be read (column {column}): {problem}", fix)


class _Builder:
    """Turns YAML nodes into plain values, noting the line of each."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.left = _NODES

    def build(self, node: Node, place: Place, inside: tuple[Node, ...]) -> Any:
        self.left -= 1
        self.document.lines.setdefault(place, node.start_mark.line + 1)
        if any(node is outer for outer in inside) or self.left == 0:
            self._refuse(place, "an alias (*) repeats itself without end", "Write the value out")
        if any(node is outer for outer in inside) or self.left <= 0:
            return None
        if str(node.tag).removeprefix("tag:yaml.org,2002:") not in _TAGS:
            self.document.report(
                place, f"the tag {node.tag} is not understood", "Put text that begins with ! in quotes"
            )
        if isinstance(node, MappingNode):
            return self._mapping(node, place, (*inside, node))
        if isinstance(node, SequenceNode):
            return [self.build(item, (*place, at), (*inside, node)) for at, item in enumerate(node.value)]
        return _scalar(str(node.tag), str(node.value))

    def _refuse(self, place: Place, what: str, fix: str) -> None:
        self.document.report(place, what, fix)
        self.document.unreadable.add(place)

    def _mapping(self, node: MappingNode, place: Place, inside: tuple[Node, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self.document.report(
                    place, "a key must be a word, not a list or a map", "Put text with { or [ in quotes"
                )
                continue
            here, line = (*place, key.value), key.start_mark.line + 1
            if key.value in result:
                first = self.document.lines[here]
                what = f"this key is given twice, first on line {first}"
                self.document.mistakes.append(Mistake(dotted(here), line, what, "Keep one of them"))
                continue
            self.document.lines[here] = line
            result[key.value] = self.build(value, here, inside)
        return result


def _scalar(tag: str, text: str) -> Any:
    match tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" | "float":
            return _number(text)
    return text


def _number(text: str) -> int | float | str:
    """The number of YAML 1.2's core schema; what only YAML 1.1 would call a number stays text."""
    plain = text.lower().replace(".inf", "inf").replace(".nan", "nan")
    converters: tuple[Callable[[str], int | float], ...] = (int, lambda digits: int(digits, 0), float)
    for convert in converters if "_" not in text else ():
        try:
            return convert(plain)
        except ValueError:
            continue
    return text
