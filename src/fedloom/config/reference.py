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

__all__ = ["find_module", "is_reference", "line_of", "load_attribute"]

_NAME = r"[^\W\d]\w*"
_REFERENCE = re.compile(rf"(?P<module>{_NAME}(?:\.{_NAME})*):(?P<attribute>{_NAME}(?:\.{_NAME})*)")
_path_lock = threading.RLock()  # an imported module may name another
_from_folders: dict[str, Path] = {}
"""The modules that were imported from an experiment's folder, and that folder."""


def is_reference(text: str) -> bool:
    """Whether a text is `module:attribute`; `sample:name`, `file.py:name`, a URL and a drive (`C:x`) are not."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return False
    module = match["module"]
    return module.lower() != "sample" and not module.endswith(".py") and len(module) > 1


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
    if module_name.startswith("fedloom."):
        found = _import(reference, module_name, base)
    else:
        found = _import_from(base.resolve(), reference, module_name)
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [other for other in dir(found) if not other.startswith("_")]
            raise UsageError(f"{module_name} has no attribute {name!r}", where=reference, fix=nearest(name, public))
        found = getattr(found, name)
    return found


def _import_from(folder: Path, reference: str, module: str) -> object:
    with _first_on_path(folder):
        _make_room(reference, module.partition(".")[0], folder)
        before = set(sys.modules)
        try:
            return _import(reference, module, folder)
        finally:
            _remember(folder, before)


def _make_room(reference: str, top: str, folder: Path) -> None:
    """Python keeps one module a name: forget those of other experiments' folders, refuse to hide one of a library."""
    for name in [name for name in sys.modules if _from_folders.get(name.partition(".")[0], folder) != folder]:
        del sys.modules[name]
    for name in [name for name, owner in _from_folders.items() if owner != folder]:
        del _from_folders[name]
    own, loaded = PathFinder.find_spec(top, [str(folder)]), sys.modules.get(top)
    if loaded is None or top in _from_folders or own is None or own.origin is None:
        return
    if getattr(loaded.__spec__, "origin", None) != own.origin:
        raise UsageError(f"{top!r} is the name of a library", where=reference, fix=f"Rename {top}.py in {folder}")


def _remember(folder: Path, before: set[str]) -> None:
    """Note the modules that came from the folder itself."""
    for name in set(sys.modules) - before:
        origin = getattr(getattr(sys.modules[name], "__spec__", None), "origin", None)
        if "." not in name and origin and folder in (Path(origin).parent, Path(origin).parent.parent):
            _from_folders[name] = folder


def _import(reference: str, name: str, base: Path) -> object:
    try:
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
            f"the module {name!r} fails when it is imported: {type(error).__name__}: {error}{line_of(error, name)}",
            where=reference,
        ) from error


def line_of(error: Exception, name: str) -> str:
    """Where in the user's own module something failed: " (own.py, line 7)", or "" when that is not known."""
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
    with _path_lock:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(folder))
