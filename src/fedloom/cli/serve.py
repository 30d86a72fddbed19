"""`fedloom serve`: the broker and the coordinator of a real federation."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.deployment.coordinator import Coordinator

__all__ = ["serve"]


def serve(
    kit: Annotated[Path, typer.Argument(help="Folder of the coordinator's kit.", show_default=False)],
    folder: Annotated[Path, typer.Option(help="Where jobs and runs are kept.")] = Path("coordinator"),
    metrics: Annotated[
        int | None, typer.Option(help="Port of /metrics, on 127.0.0.1 unless --metrics-address.")
    ] = None,
    metrics_address: Annotated[str, typer.Option(help="Address to serve /metrics at.")] = "127.0.0.1",
    lease: Annotated[float, typer.Option(min=1, help="Seconds of silence after which a party counts as gone.")] = 30.0,
) -> None:
    """Run a federation's coordinator, and its broker unless it uses the organisation's own.

    The first SIGTERM or Ctrl-C finishes the round that is under way and saves it; the second stops at once. Either way the next
    start goes on where this one left off.

    Example: fedloom serve federation/kits/coordinator --folder /srv/fedloom --metrics 9464
    """
    from contextlib import ExitStack

    from fedloom.deployment.coordinator import Coordinator
    from fedloom.deployment.operator import SUBJECT
    from fedloom.deployment.service import Enrolment, connect, locked
    from fedloom.engines.remote.broker import Broker
    from fedloom.engines.remote.kit import read_kit

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    read = read_kit(kit, "coordinator")
    folder = folder.resolve()
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        broker = Broker(read)
        stack.callback(broker.stop)
        broker.start()
        link = connect(read, lease, holder=str(folder))
        stack.callback(link.close)
        coordinator = Coordinator(link, folder, read.federation)
        stack.enter_context(Enrolment(broker, link))
        link.listen(SUBJECT, coordinator.answer)
        if metrics is not None:
            from fedloom.deployment.metrics import serve_metrics

            port = stack.enter_context(serve_metrics(coordinator.status, metrics, metrics_address))
            print(f"metrics: http://{metrics_address}:{port}/metrics", flush=True)
        print(f"{read.federation}: ready at {', '.join(read.urls)}", flush=True)
        _drain_on_signals(coordinator)
        coordinator.serve()


def _drain_on_signals(coordinator: Coordinator) -> None:
    def drain(number: int, _: Any) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.default_int_handler)  # the next one stops at once
        text = f"{signal.Signals(number).name}: the round is finished and saved, then this ends\n"
        os.write(2, text.encode())  # no log, whose locks may be held by what this interrupts
        coordinator.drain()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, drain)
