"""What monitoring reads of a coordinator, in the Prometheus text format, at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fedloom.errors import UsageError

__all__ = ["serve_metrics"]

_TOTALS = {
    "rounds": "Rounds completed.",
    "updates": "Updates that joined a round.",
    "dropped": "Clients that were asked and whose update did not join.",
    "bytes_up": "Bytes of updates, where they are encoded.",
    "bytes_down": "Bytes of broadcasts, where they are encoded.",
}


@contextmanager
def serve_metrics(status: Callable[[], dict[str, Any]], port: int, address: str = "127.0.0.1") -> Iterator[int]:
    """Serve them; the port is told, where 0 let the system choose one.

    Raises UsageError when the port is taken.
    """
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    registry.register(_Collector(status))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        what = f"metrics cannot be served at {address}:{port}"
        raise UsageError(what, why=error.strerror or str(error), fix="choose another --metrics port") from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


class _Collector:
    """Reads the status when it is asked."""

    def __init__(self, status: Callable[[], dict[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status()
        online = GaugeMetricFamily("fedloom_client_online", "1 where the client is online.", labels=["client"])
        busy = GaugeMetricFamily("fedloom_client_busy", "1 where the client has a lease.", labels=["client"])
        for client in status["clients"]:
            online.add_metric([client["client"]], float(client["online"]))
            busy.add_metric([client["client"]], float(bool(client.get("busy"))))
        jobs = GaugeMetricFamily("fedloom_jobs", "Jobs by state.", labels=["state"])
        for state in ("queued", "running", "finished", "stopped", "failed"):
            jobs.add_metric([state], sum(job["state"] == state for job in status["jobs"]))
        yield from (online, busy, jobs)
        for name, about in _TOTALS.items():
            yield CounterMetricFamily(f"fedloom_{name}", about, value=status["totals"][name])
        for name, about in (("round", "The last round completed."), ("rounds", "Rounds in all.")):
            yield GaugeMetricFamily(
                f"fedloom_job_{name}", f"{about} Of the job under way.", status["current"].get(name, 0)
            )
        yield GaugeMetricFamily(
            "fedloom_uptime_seconds", "Since the coordinator was started.", status["uptime_seconds"]
        )
