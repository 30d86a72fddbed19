"""The operator's end: requests to the coordinator, over the broker, with the operator's kit."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from fedloom.deployment.control import Reply
from fedloom.errors import RunError, UsageError

__all__ = ["SUBJECT", "Operator", "find_kit"]

SUBJECT = "fl.op.request"
logging.getLogger("asyncio").addFilter(lambda record: "eof_received" not in str(record.msg))  # of nats-py's own making
_PATIENCE = 10.0  # seconds, to connect and for each reply

T = TypeVar("T")


def find_kit(kit: str | Path | None) -> Path:
    """The folder of the operator's kit: the one given, else FEDLOOM_KIT.

    Raises UsageError when neither is there.
    """
    found = kit or os.environ.get("FEDLOOM_KIT")
    if not found:
        fix = "give --kit (for `fedloom run`: engine.kit=...), or set FEDLOOM_KIT to the folder of the operator's kit"
        raise UsageError("whose federation is meant is not said", fix=fix)
    return Path(found)


class Operator:
    """Asks the coordinator; as a context, connected from beginning to end.

    Raises UsageError where broker or coordinator do not answer, RunError where the coordinator refuses.
    """

    def __init__(self, folder: Path) -> None:
        from fedloom.engines.remote.kit import connect_options, read_kit

        self.kit = read_kit(folder, "operator")
        self._options = connect_options(self.kit)
        self._runner = asyncio.Runner()
        self._connection: Any = None

    def __enter__(self) -> Operator:
        self._run(self._connect())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._connection is not None:
                self._run(self._connection.close())
        finally:
            self._runner.close()

    def ask(self, request: BaseModel) -> dict[str, Any]:
        """What the coordinator says."""
        import nats.errors

        where = ", ".join(self.kit.urls)
        try:
            message = self._run(
                self._connection.request(SUBJECT, request.model_dump_json().encode(), timeout=_PATIENCE)
            )
            reply = Reply.model_validate_json(message.data)
        except nats.errors.NoRespondersError:
            fix = "start it: `fedloom serve`"
            raise UsageError("no coordinator is running at this federation's broker", where=where, fix=fix) from None
        except (nats.errors.TimeoutError, nats.errors.ConnectionClosedError, OSError):
            fix = "see whether `fedloom serve` still runs, and its log"
            raise UsageError(
                f"the coordinator has not answered within {_PATIENCE:.0f} s", where=where, fix=fix
            ) from None
        except ValidationError:
            fix = "install the same version of fedloom on both sides"
            raise UsageError("the coordinator's answer cannot be read", where=where, fix=fix) from None
        if reply.error is not None:
            raise RunError("the coordinator refused", why=reply.error)
        return dict(reply.data)

    def _run(self, task: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(task)

    async def _connect(self) -> None:
        import nats
        import nats.errors

        last: list[BaseException] = []

        async def heard(error: Exception) -> None:
            last.append(error)

        try:
            self._connection = await asyncio.wait_for(
                nats.connect(**self._options, allow_reconnect=False, connect_timeout=5, error_cb=heard), _PATIENCE
            )
        except (nats.errors.Error, OSError, ssl.SSLError, TimeoutError) as error:
            why = str((last or [error])[-1]) or type(error).__name__
            fix = "see whether `fedloom serve` runs, whether this machine reaches that address, and whether the kit was revoked"
            where = ", ".join(self.kit.urls)
            raise UsageError(
                "the broker does not let us in, or does not answer", where=where, why=why, fix=fix
            ) from None
