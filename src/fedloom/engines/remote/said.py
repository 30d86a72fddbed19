"""What a client has answered, on its own disk: one that dies between training and the end of its upload does not train again."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path

from pydantic import ValidationError

from fedloom.engines.remote.link import Answer
from fedloom.engines.remote.signing import Forged, Signer, unseal

__all__ = ["Said"]

_KEPT = 64


class Said:
    """The last answers of one client; the content of one is kept until the broker holds it.

    Files are renamed into place but not flushed: after a power cut an answer may be lost, and is worked out again.
    """

    def __init__(self, folder: Path, client: str, signer: Signer) -> None:
        self._folder = folder / sha256(f"{signer.federation}\0{client}".encode()).hexdigest()[:16]
        self._client, self._signer = client, signer
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, ask: str, sealed: bytes, content: bytes | None) -> None:
        """Write an answer down before any of it is sent; `ask` is the digest of what it is to."""
        kept = sorted(self._folder.glob("*.answer"), key=lambda path: path.stat().st_mtime)
        for path in kept[: -_KEPT + 1]:
            self.drop(path.stem)
        if content is not None:
            self._write(f"{ask}.content", content)
        self._write(f"{ask}.answer", sealed)

    def find(self, ask: str) -> tuple[Answer, bytes, bytes | None] | None:
        """An answer, sealed, and its content unless that has arrived; None when there is none, or it is not whole."""
        try:
            sealed = (self._folder / f"{ask}.answer").read_bytes()
            answer = Answer.model_validate_json(
                unseal(self._signer.verify_key, self._signer.federation, "answer", self._client, sealed)
            )
            if answer.content is None or (self._folder / f"{ask}.arrived").exists():
                return answer, sealed, None
            content = (self._folder / f"{ask}.content").read_bytes()
        except (FileNotFoundError, Forged, ValidationError):
            return None
        return (answer, sealed, content) if sha256(content).hexdigest() == answer.content.sha256 else None

    def arrived(self, ask: str) -> None:
        """The broker holds the answer and its content."""
        self._write(f"{ask}.arrived", b"")
        (self._folder / f"{ask}.content").unlink(missing_ok=True)

    def drop(self, ask: str) -> None:
        """Forget an answer."""
        for kind in ("answer", "arrived", "content"):
            (self._folder / f"{ask}.{kind}").unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        aside = self._folder / f".{name}.tmp"
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        aside.replace(self._folder / name)
