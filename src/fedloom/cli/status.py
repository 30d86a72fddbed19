"""`fedloom status`: clients, jobs and rounds of a federation that is running."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["status"]


def status(
    kit: Annotated[Path | None, typer.Option(help="Folder of the operator's kit; else FEDLOOM_KIT.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Ask again every two seconds, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the coordinator says.")] = False,
) -> None:
    """Show the clients, jobs and rounds of a federation.

    Example: fedloom status --kit kits/operator --watch
    """
    from rich.console import Console
    from rich.live import Live

    from fedloom.deployment.control import Status
    from fedloom.deployment.operator import Operator, find_kit

    with Operator(find_kit(kit)) as operator:
        facts = operator.ask(Status())
        if as_json:
            print(json.dumps(facts, indent=1))
        elif not watch:
            Console().print(_show(facts))
        else:
            with Live(_show(facts), auto_refresh=False, screen=False) as live:
                while True:
                    time.sleep(2)
                    live.update(_show(operator.ask(Status())), refresh=True)


def _show(facts: dict[str, Any]) -> RenderableType:
    """Three small tables."""
    from rich.console import Group
    from rich.table import Table

    totals, current = facts["totals"], facts["current"]
    head = f"{facts['federation']}: up {facts['uptime_seconds']:.0f} s" + (", draining" if facts["draining"] else "")
    traffic = f"{totals['bytes_up'] / 1e6:.2f} MB up, {totals['bytes_down'] / 1e6:.2f} MB down"
    done = f"{totals['rounds']} rounds, {totals['updates']} updates, {totals['dropped']} dropped, {traffic}"
    clients = Table("client", "online", "last heard of", "working on", box=None, header_style="dim")
    for c in facts["clients"]:
        seen = f"{c['seen_seconds']:.0f} s ago" if c["online"] else ""
        clients.add_row(c["client"], "yes" if c["online"] else "no", seen, c.get("busy") or "")
    jobs = Table("job", "name", "state", "round", "", box=None, header_style="dim")
    for job in facts["jobs"]:
        at = f"{current.get('round', 0)} of {current.get('rounds', '?')}" if job["id"] == current.get("job") else ""
        jobs.add_row(str(job["id"]), job["name"], job["state"], at, job["error"] or "")
    parts: list[RenderableType] = [head, done, "", clients]
    return Group(*parts, "", jobs) if facts["jobs"] else Group(*parts)
