"""`module:attribute`: how an experiment file names the user's own code."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.machinery import PathFinder
from pathlib import Path

from fedloom.errors import UsageError, nearest

__all__ = ["find_module", "is_reference", "load_attribute"]

_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(?P<module>{_NAME}(?:\.{_NAME})*):(?P<attribute>{_NAME}(?:\.{_NAME})*)")
_path_lock = threading.Lock()
_from_folders: set[str] = set()
"""Modules that were imported from the folder of an experiment."""


def is_reference(text: str) -> bool:
    """Whether a text is `module:attribute`; `sample:name`, a URL and a Windows drive (`C:data`) are not."""
    match = _REFERENCE.fullmatch(text)
    return match is not None and match["module"] != "sample" and len(match["module"]) > 1


def find_module(reference: str, base: Path) -> UsageError | None:
    """The error for a reference whose module is neither in `base` nor installed; nothing is imported."""
    top = reference.partition(":")[0].partition(".")[0]
    if top in sys.modules or top in sys.builtin_module_names or PathFinder.find_spec(top, [str(base), *sys.path]):
        return None
    return _not_found(reference, top, base)


def load_attribute(reference: str, base: Path) -> object:
    """The object that `module:attribute` names; `base` is searched first for the module, then what is installed.

    Raises:
        UsageError: no such module or attribute, or the module fails when it is imported.
    """
    if not is_reference(reference):
        raise UsageError(f"{reference!r} is not module:attribute", fix="Write it like my_model:build, without .py")
    module_name, _, attribute = reference.partition(":")
    with _first_on_path(base):
        _make_room(reference, module_name.partition(".")[0], base)
        module = _import(reference, module_name, base)
    found: object = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = (
                [candidate for candidate in vars(found) if not candidate.startswith("_")]
                if hasattr(found, "__dict__")
                else []
            )
            fix = nearest(name, public) if public else None
            raise UsageError(f"{module_name} has no attribute {name!r}", where=reference, fix=fix)
        found = getattr(found, name)
    return found


def _make_room(reference: str, top: str, base: Path) -> None:
    """Python keeps one module a name: forget one of another experiment's folder, refuse one of Python or a package."""
    spec = PathFinder.find_spec(top, [str(base.resolve())])
    loaded = sys.modules.get(top)
    if spec is None or loaded is None or getattr(loaded, "__spec__", None) is None:
        return
    assert loaded.__spec__ is not None
    if loaded.__spec__.origin == spec.origin:
        return
    if top not in _from_folders:
        what = f"the name {top!r} is taken by {loaded.__spec__.origin or 'Python itself'}"
        raise UsageError(what, where=reference, fix=f"Rename {top}.py in {base}")
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]


def _import(reference: str, name: str, base: Path) -> object:
    top = name.partition(".")[0]
    try:
        if top not in sys.modules and PathFinder.find_spec(top, [str(base.resolve())]):
            _from_folders.add(top)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _not_found(reference, error.name, base) from None
        raise UsageError(
            f"the module {name!r} needs {error.name!r}, which is not installed",
            where=reference,
            fix=f"Install {error.name}",
        ) from error
    except Exception as error:
        raise UsageError(
            f"the module {name!r} fails when it is imported: {type(error).__name__}: {error}{_line_of(error, name)}",
            where=reference,
        ) from error


def _line_of(error: Exception, name: str) -> str:
    """Where in the user's own file an import failed."""
    if isinstance(error, SyntaxError):
        return ""  # its text ends with the file and line
    places = []
    trace = error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_globals.get("__name__"), trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [f" ({Path(file).name}, line {line})" for module, file, line in places if module == name]
    return own[-1] if own else ""


def _not_found(reference: str, module: str, base: Path) -> UsageError:
    files = sorted(
        {path.stem for path in base.glob("*.py")} | {path.parent.name for path in base.glob("*/__init__.py")}
    )
    close = get_close_matches(module, files, n=1, cutoff=0.5)
    if close:
        fix = f"Did you mean {reference.replace(module, close[0], 1)!r}?"
    elif files:
        fix = f"Modules in {base}: {', '.join(files[:10])}"
    else:
        fix = f"Put {module.partition('.')[0]}.py into {base}"
    return UsageError(f"there is no module {module!r}, neither in {base} nor installed", where=reference, fix=fix)


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """The folder is searched first for modules, only inside the block."""
    entry = str(folder.resolve())
    with _path_lock:
        sys.path.insert(0, entry)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(entry)
