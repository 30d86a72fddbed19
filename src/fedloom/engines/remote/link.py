"""What a coordinator and its clients ask of whatever carries their messages.

A coordinator asks, a client answers. Asks and answers are small and signed; tensors travel beside them as blobs, stored once and
fetched in chunks by digest. Everything is idempotent: an ask is known by (run, round, kind, client), an answer by the ask it is
to, so that either side may die at any instant and say the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from fedloom.codec.wire import Buffer
from fedloom.errors import RunError

__all__ = ["Answer", "Ask", "Blob", "ClientLink", "Kind", "Presence", "ServerLink", "Unreachable"]

Kind = Literal["open", "train", "evaluate", "close"]
"""Load an experiment and say what you hold; train; judge a vector on your own rows; forget the experiment."""


class Unreachable(RunError):
    """This process can no longer say or hear anything; what was asked and answered is kept for the next one."""


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Blob(_Message):
    """Bytes that are stored beside the messages."""

    key: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,120}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]


class Ask(_Message):
    """What one client is asked to do."""

    run: str
    round: int
    kind: Kind
    client: str
    part: int = 0
    """Numbers the asks of one kind to one client in one round, should there be several."""
    facts: dict[str, JsonValue] = {}
    blobs: dict[str, Blob] = {}

    @property
    def id(self) -> str:
        """Known by this on both sides, and in the log."""
        return f"{self.run}.{self.round}.{self.kind}.{self.part}"

    @property
    def digest(self) -> str:
        """SHA-256 of the ask: an answer names the very ask it is to."""
        return sha256(self.model_dump_json().encode()).hexdigest()


class Answer(_Message):
    """What a client says to an ask."""

    id: str
    ask: str
    """Digest of the ask."""
    client: str
    status: Literal["ok", "failed", "refused"]
    reason: str | None = None
    facts: dict[str, JsonValue] = {}
    content: Blob | None = None


class Presence(_Message):
    """A client as the coordinator last heard of it."""

    client: str
    seen: float
    """Seconds since it was last heard of."""
    busy: str | None = None
    """The id of the ask it is working on."""


class ServerLink(Protocol):
    """The coordinator's end. Calls block; every one may be repeated after a crash, with the same outcome."""

    @property
    def clients(self) -> Sequence[str]:
        """The names of all who are enrolled."""

    def put(self, key: str, content: bytes) -> Blob:
        """Store what clients fetch; the same key with the same bytes is stored once."""

    def ask(self, asks: Sequence[Ask]) -> None:
        """Hand asks over durably: each waits for its client, and is told again when the client's lease ends unanswered."""

    def answers(self, asks: Sequence[Ask], timeout: float) -> list[Answer]:
        """The verified answers to these asks that have not been returned before, at least one; none when `timeout` seconds pass."""

    def fetch(self, answer: Answer, limit: int) -> Buffer:
        """An answer's content, the caller's from then on; its signature, size (at most `limit`) and digest verified.

        Raises FedloomError when it is refused.
        """

    def cancel(self, asks: Sequence[Ask]) -> None:
        """Withdraw asks that are not answered; later answers are refused and logged."""

    def forget(self, run: str, before: int) -> None:
        """Free what the run stored for rounds before this one."""

    def presence(self) -> Mapping[str, Presence]:
        """Every client that is online, by name."""


class ClientLink(Protocol):
    """A client's end."""

    def next(self, timeout: float) -> Ask | None:
        """The next ask, its signature verified; None when `timeout` seconds pass. Its lease is renewed until it is answered."""

    def get(self, blob: Blob) -> Buffer:
        """Fetch a blob, its digest verified.

        Raises FedloomError when it cannot be had.
        """

    def cancelled(self, ask: Ask) -> bool:
        """Whether the coordinator has withdrawn it."""

    def answer(self, answer: Answer, content: bytes | None = None) -> None:
        """Sign and hand over an answer, its content first."""
