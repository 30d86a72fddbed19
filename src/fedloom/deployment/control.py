"""What an operator asks of a coordinator, and what it says: small JSON messages, strict both ways."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

__all__ = ["Logs", "Reply", "Request", "Status", "Stop", "Submit", "read_request"]

_MOST_TEXT = 200_000


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Submit(_Message):
    """Run this experiment."""

    kind: Literal["submit"] = "submit"
    name: Annotated[str, Field(max_length=100)]
    text: Annotated[str, Field(max_length=_MOST_TEXT)]
    key: Annotated[str, Field(min_length=8, max_length=100)]


class Status(_Message):
    """How are things?"""

    kind: Literal["status"] = "status"


class Stop(_Message):
    """Finish the round and save; a job that waits is not begun."""

    kind: Literal["stop"] = "stop"
    job: int


class Logs(_Message):
    """The lines of a job's log after so many."""

    kind: Literal["logs"] = "logs"
    job: int
    after: Annotated[int, Field(ge=0)] = 0


class Reply(_Message):
    """The answer, or why there is none."""

    error: str | None = None
    data: dict[str, JsonValue] = {}


Request = Annotated[Submit | Status | Stop | Logs, Field(discriminator="kind")]
_REQUEST: TypeAdapter[Any] = TypeAdapter(Request)


def read_request(content: bytes) -> Submit | Status | Stop | Logs | None:
    """The request; None where it is none."""
    try:
        request: Submit | Status | Stop | Logs = _REQUEST.validate_json(content)
        return request
    except ValidationError:
        return None
