"""What went wrong, where, why, and how to mend it.

Every error a user can cause is a `FedloomError`; the command prints it as one paragraph, without a traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

__all__ = [
    "CheckpointError",
    "ClientError",
    "ConfigError",
    "DataError",
    "FedloomError",
    "Mistake",
    "ModelError",
    "RunError",
    "UsageError",
    "nearest",
]


def _sentence(text: str) -> str:
    return text if text.endswith(("?", "!")) else f"{text.rstrip('.')}."


def _capital(text: str) -> str:
    """With a capital, unless it begins with a name: "`resume` ...", "own:pairs ..."."""
    return text[:1].upper() + text[1:] if text.partition(" ")[0].rstrip(",").isalpha() else text


class FedloomError(Exception):
    """An error with a place, a reason and a remedy.

    what: one clause, "the label 'sport' is not in the training set"; where: file and line, key, or client;
    why: the cause, when it is not plain; fix: what to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(self._paragraph())

    def _paragraph(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        sentences = [head, *(_capital(s) for s in (self.why, self.fix) if s)]
        return " ".join(_sentence(s) for s in sentences)


class UsageError(FedloomError):
    """An argument of the command, or a name given to it, is wrong."""

    exit_code = 2


class DataError(FedloomError):
    """A source, a row, a field, a label or a partition is wrong."""

    exit_code = 2


class ModelError(FedloomError):
    """A base model or an adapter cannot be loaded, or does not match."""

    exit_code = 2


class CheckpointError(FedloomError):
    """A checkpoint is missing, damaged or of another run; or could not be saved."""


class RunError(FedloomError):
    """A run directory cannot be used, or a run cannot go on."""


class ClientError(FedloomError):
    """A client failed: its id, its round, its own traceback."""

    def __init__(self, client: str, round: int, what: str, *, detail: str = "", fix: str | None = None) -> None:
        self.client, self.round, self.detail = client, round, detail
        super().__init__(what, where=f"client {client!r}, round {round}", fix=fix)


@dataclass(frozen=True)
class Mistake:
    """One mistake in an experiment file: its key ("": the whole file), line (0: an override), what, the fix."""

    key: str
    line: int
    what: str
    fix: str | None = None

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else "override" if self.key else ""
        at = ", ".join(part for part in (place, self.key) if part)
        tail = f" {_sentence(self.fix)}" if self.fix else ""
        return f"{at}: {_sentence(self.what)}{tail}".removeprefix(": ")


class ConfigError(FedloomError):
    """Every mistake of an experiment file, at once."""

    exit_code = 2

    def __init__(self, file: str, mistakes: Sequence[Mistake]) -> None:
        self.file, self.mistakes = file, tuple(mistakes)
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        super().__init__(f"{file}: {count}")

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {m}" for m in self.mistakes)])


def nearest(name: str, valid: Sequence[str]) -> str:
    """A hint that names the closest valid name: "Did you mean 'fedavg'? Valid: ..."."""
    close = get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Valid: {', '.join(sorted(valid))}"
