"""NVFlare's part of `remote.py`, in processes and an environment of its own: a controller that pushes a vector and takes the mean.

Run as `nvflare_deploy_app.py ADMIN_KIT JOB`, it submits a job and returns.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import ReturnCode, Shareable, make_reply
from nvflare.apis.signal import Signal

TOPIC = "pingpong"
PATIENCE = 600.0


def written(w: Any, as_bytes: bool) -> Any:
    """A vector as it travels."""
    return w.tobytes() if as_bytes else w


def read(w: Any) -> Any:
    """The vector that travelled."""
    return np.frombuffer(w, np.float32) if isinstance(w, bytes) else w


class Answerer(Executor):  # type: ignore[misc]
    """Resident in a client's job process: answers what is pushed with the vector and this client's number."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Listen from the start of the job."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            fl_ctx.get_engine().register_aux_message_handler(TOPIC, self._answer)

    def _answer(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        number = np.float32(int(fl_ctx.get_identity_name().rpartition("-")[2]))
        reply = make_reply(ReturnCode.OK)
        reply["w"] = written(read(request["w"]) + number, isinstance(request["w"], bytes))
        return reply

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """No tasks are given out."""
        return make_reply(ReturnCode.TASK_UNKNOWN)


class Rounds(Controller):  # type: ignore[misc]
    """So many rounds, each written down when its mean is there."""

    def __init__(self, numbers: int, rounds: int, out: str, as_bytes: bool) -> None:
        super().__init__()
        self._numbers, self._rounds, self._out, self._as_bytes = numbers, rounds, Path(out), as_bytes

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to do."""

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to do."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """The rounds."""
        engine = fl_ctx.get_engine()
        while len(engine.get_clients()) < 2 or not self._ready(engine, fl_ctx):
            time.sleep(0.2)
        w = np.random.default_rng(0).standard_normal(self._numbers, dtype=np.float32)
        for _ in range(self._rounds):
            began, expected = time.perf_counter(), w[:8] + np.float32(1.5)
            replies = self._push(engine, w, fl_ctx, PATIENCE)
            total = np.zeros_like(w)
            for name in sorted(replies):
                total += read(replies.pop(name)["w"])
            w = total / np.float32(2)
            seconds = time.perf_counter() - began
            if not np.allclose(w[:8], expected, atol=1e-4):
                raise RuntimeError(f"the mean is {w[:8]}, not {expected}")
            with self._out.open("a") as out:
                out.write(json.dumps({"seconds": seconds}) + "\n")

    def _push(self, engine: object, w: object, fl_ctx: FLContext, timeout: float) -> dict[str, Shareable]:
        request = Shareable()
        request["w"] = written(w, self._as_bytes)
        found = engine.send_aux_request(  # type: ignore[attr-defined]
            targets=None, topic=TOPIC, request=request, timeout=timeout, fl_ctx=fl_ctx
        )
        bad = {name: own.get_return_code() for name, own in found.items() if own.get_return_code() != ReturnCode.OK}
        if bad or len(found) != 2:
            raise RuntimeError(f"answers of {sorted(found)}, failed {bad}")
        return dict(found)

    def _ready(self, engine: object, fl_ctx: FLContext) -> bool:
        """Whether both clients' job processes listen."""
        try:
            self._push(engine, np.zeros(1, np.float32), fl_ctx, 2.0)
        except RuntimeError:
            return False
        return True


def main() -> None:
    """Submit a job with the administrator's kit."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    session = new_secure_session("admin@benchmark.org", sys.argv[1], timeout=60.0)
    try:
        print(session.submit_job(sys.argv[2]))
    finally:
        session.close()


if __name__ == "__main__":
    main()
