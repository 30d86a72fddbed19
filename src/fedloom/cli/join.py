"""`fedloom join`: a client's node in a real federation."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["join"]


def join(
    kit: Annotated[Path, typer.Argument(help="Folder of this client's kit.", show_default=False)],
    site: Annotated[
        Path | None, typer.Option(help="What rows are yours and what you agree to; see `fedloom explain --site`.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Your rows, where no site file says more.")] = None,
    state: Annotated[Path, typer.Option(help="Where this client keeps what is its own.")] = Path("state"),
    lease: Annotated[float, typer.Option(min=1, help="As the coordinator's.")] = 30.0,
) -> None:
    """Take part in a federation with rows that stay here. Dials out only; goes on by itself after whatever breaks.

    Every answer is a line in STATE/sent.jsonl: what was asked, what left this machine, in bytes, names and norms.

    Example: fedloom join kits/north --site site.yaml --state /var/lib/fedloom
    """
    from contextlib import ExitStack

    from fedloom.config.site import Site, SiteData, read_site
    from fedloom.deployment.service import dial, locked
    from fedloom.engines.remote.kit import read_kit
    from fedloom.engines.remote.resident import Resident
    from fedloom.errors import UsageError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if (site is None) == (data is None):
        raise UsageError("say which rows are yours: with --site, or with --data", fix="give one of the two")
    own = read_site(site) if site is not None else Site(data=SiteData(source=str(data)))
    base = site.resolve().parent if site is not None else Path.cwd()
    read = read_kit(kit, "client")
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(locked(state))
        link = dial(read, state / "link", lease)
        stack.callback(link.close)
        resident = Resident(read.name, own, link, state, base=base, told=_tell)
        print(f"{read.name}: joined {read.federation} at {', '.join(read.urls)}", flush=True)
        _stop_on_signals(stop)
        resident.serve(stop.is_set)


def _tell(line: dict[str, Any]) -> None:
    """One answer, for the log."""
    facts = f"{line['bytes_received']} bytes received, {line['bytes_sent']} sent"
    if "samples" in line:
        facts = f"{line['samples']} samples, loss {line['loss']:.4f}, {facts}"
    reason = f": {line['reason']}" if line["reason"] else ""
    logging.getLogger("fedloom.client").info(
        "%s round %s %s: %s; %s%s", line["run"], line["round"], line["kind"], line["status"], facts, reason
    )


def _stop_on_signals(stop: threading.Event) -> None:
    def end(*_: Any) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.default_int_handler)  # the next one stops at once
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
