"""The paper index, from what the algorithms' files say of themselves.

`python -m fedloom.algorithms.papers` prints docs/papers.md; `fedloom list algorithms` and `fedloom explain algorithm.NAME` print
the same as text. Nothing is known here of any one algorithm.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from fedloom.algorithms import ALGORITHMS, catalogue
from fedloom.config.keys import show
from fedloom.errors import UsageError, nearest

__all__ = ["command", "describe", "explain", "markdown", "overview"]

Entry = Mapping[str, Any]

TOY = "examples/toy/experiment.yaml"
_YEAR = re.compile(r".*?\b(?:19|20)\d\d\b")
_ARXIV = re.compile(r"arXiv[: ]\s*(\d{4}\.\d{4,5})")
_PLAIN = re.compile(r"[\w.+-]+")

HEAD = """\
# Papers

Written by `make papers` from the files in `src/fedloom/algorithms/`; `fedloom list algorithms` and `fedloom explain algorithm.NAME`
say the same on a terminal.

A method is chosen by its name, `algorithm: NAME` or `algorithm: {name: NAME, option: value}`. Methods go together,
`algorithm: {name: NAME, with: OTHER}`, as long as no two of them decide the same thing. Bytes are relative to FedAvg's, a round
and client; a vector is as long as what is trained. Each method ends with the command that runs its paper's main experiment at toy
scale.
"""


def overview(entries: Iterable[Entry]) -> str:
    """The index as text: a line or two a method, by family."""
    entries = list(entries)
    wide = max(len(entry["name"]) for entry in entries)
    lines: list[str] = []
    for family, group in groupby(entries, lambda entry: entry["family"]):
        lines += [*([""] if lines else []), family]
        for entry in group:
            lines.append(f"  {entry['name']:<{wide}}  {entry['title']} ({_source(entry)})")
            options = ", ".join(
                f"{o['name']} {_default(o)}" for o in entry["options"] if not isinstance(o["default"], list)
            )
            facts = "; ".join(part for part in (options, _extra(entry)) if part)
            lines += [f"  {'':<{wide}}  {facts}"] if facts else []
    return "\n".join([*lines, "", "More of one: fedloom explain algorithm.NAME"])


def describe(key: str) -> list[dict[str, Any]]:
    """What `explain` says of `algorithm.NAME`, `algorithm.NAME.OPTION` or `algorithm.OPTION`, as data: a method, or options.

    Raises UsageError when there is neither such a method nor such an option.
    """
    name, _, option = key.removeprefix("algorithm.").partition(".")
    if name in ALGORITHMS and not option:
        return [*catalogue([name])]
    entries = catalogue([name] if name in ALGORITHMS else ALGORITHMS)
    wanted = option if name in ALGORITHMS else name
    found = [(entry, o) for entry in entries for o in entry["options"] if o["name"] == wanted]
    if not found:
        known = [o["name"] for entry in entries for o in entry["options"]]
        fix = nearest(wanted, known if name in ALGORITHMS else [*ALGORITHMS, *known])
        whose = f"{name} has no option" if name in ALGORITHMS else "there is no algorithm, and none has an option,"
        raise UsageError(f"{whose} {wanted!r}", fix=fix if known else f"{name} has no options")
    return [{"key": f"algorithm.{wanted}", "kind": entry["name"]} | dict(o) for entry, o in found]


def explain(key: str) -> str:
    """A method in full, or what an option means in each method that has it."""
    found = describe(key)
    return _method(found[0]) if "formula" in found[0] else "\n".join([found[0]["key"], *map(_option, found)])


def command(entry: Entry) -> str:
    """The command that runs the paper's main experiment at toy scale."""
    own = {key.removeprefix("algorithm."): v for key, v in entry["signature"].items() if key.startswith("algorithm.")}
    rest = {key: value for key, value in entry["signature"].items() if not key.startswith("algorithm.")}
    algorithm = _yaml({"name": entry["name"], **own}) if own else entry["name"]
    words = [f"algorithm={algorithm}", *(f"{key}={_yaml(value)}" for key, value in rest.items())]
    return " ".join(["fedloom run", TOY, *map(shlex.quote, words)])


def markdown(entries: Iterable[Entry]) -> str:
    """docs/papers.md."""
    entries = list(entries)
    parts = [HEAD]
    for family, group in groupby(entries, lambda entry: entry["family"]):
        rows = [
            [
                f"[{e['name']}](#{e['name']})",
                e["title"],
                _source(e),
                e["cost"]["up"],
                e["cost"]["down"],
                e["cost"]["state"],
            ]
            for e in group
        ]
        parts.append(_table(["", family, "paper", "bytes up", "bytes down", "a client keeps"], rows))
    parts += [_section(entry) for entry in entries]
    return "\n".join(parts)


def _section(entry: Entry) -> str:
    """A method's part of docs/papers.md."""
    equation = f", {entry['equation']}" if entry["equation"] else ""
    paper = _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", entry["paper"][:1].upper() + entry["paper"][1:])
    decides = f" Decides: {', '.join(entry['decides'])}." if entry["decides"] else ""
    lines = [
        f"## {entry['name']}\n",
        f"{entry['title']}. {paper}{equation}. In [{entry['file'].rpartition('/')[2]}](../{entry['file']}).{decides}\n",
        f"```text\n{entry['formula']}\n```\n",
    ]
    if entry["options"]:
        rows = [[f"`{o['name']}`", o["type"], _default(o), o["description"]] for o in entry["options"]]
        lines.append(_table(["option", "", "default", ""], rows))
    lines += [f"Costs: {_cost(entry)}.\n", f"```\n{command(entry)}\n```\n"]
    return "\n".join(lines)


def _method(entry: Entry) -> str:
    lines = [f"algorithm.{entry['name']}", f"  {entry['title']}", f"  paper: {entry['paper']}"]
    lines += [f"  {key}: {entry[key]}" for key in ("equation", "family", "file") if entry[key]]
    lines += ["", *(f"    {line}".rstrip() for line in entry["formula"].splitlines()), ""]
    wide = max((len(o["name"]) for o in entry["options"]), default=0)
    lines += ["  keys:"] if entry["options"] else []
    for o in entry["options"]:
        lines += [f"    {o['name']:<{wide}}  {o['type']}; {_say_default(o)}", f"    {'':<{wide}}  {o['description']}"]
    decides = [f"  decides: {', '.join(entry['decides'])}"] if entry["decides"] else []
    return "\n".join([*lines, f"  costs: {_cost(entry)}", *decides, f"  toy: {command(entry)}"])


def _option(found: Entry) -> str:
    about = [f"[algorithm: {found['kind']}]", found["description"], f"type: {found['type']}", _say_default(found)]
    return "\n".join(f"  {line}" for line in about if line)


def _source(entry: Entry) -> str:
    """Authors, year and equation: the paper without its title."""
    match = _YEAR.match(entry["paper"])
    return ", ".join(part for part in (match[0] if match else entry["paper"], entry["equation"]) if part)


def _cost(entry: Entry) -> str:
    """What a method costs, in words."""
    cost = entry["cost"]
    kept = "nothing" if cost["state"] == "none" else cost["state"]
    return f"{_bytes(cost)}; a client keeps {kept}; extra computation: {cost['compute']}"


def _extra(entry: Entry) -> str:
    """What a method costs that FedAvg does not."""
    cost = entry["cost"]
    parts = {"state": f"keeps {cost['state']}", "compute": f"extra computation: {cost['compute']}"}
    moved = [] if cost["up"] == cost["down"] == "1x" else [_bytes(cost)]
    return "; ".join([*moved, *(text for key, text in parts.items() if cost[key] != "none")])


def _bytes(cost: Mapping[str, str]) -> str:
    same = cost["up"] == cost["down"]
    return f"bytes up and down {cost['up']}" if same else f"bytes up {cost['up']}, down {cost['down']}"


def _default(option: Entry) -> str:
    default = option["default"]
    if option["required"]:
        return "required"
    return default if isinstance(default, str) else _yaml(default)


def _say_default(option: Entry) -> str:
    return "required" if option["required"] else f"default: {_default(option)}"


def _yaml(value: Any) -> str:
    """A value as it stands on one line of YAML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) else f'"{value}"'
    return "null" if value is None else show(value)


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    print(markdown(catalogue()), end="")
