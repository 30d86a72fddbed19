"""The cluster of `engine: ray`: joined where it runs already, else started on this machine, to which it then keeps."""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fedloom.config.engine import RayEngine as Options
from fedloom.errors import UsageError

__all__ = ["connect", "count_workers", "first_line", "import_ray"]

_ANSWER = 30.0
"""Seconds in which a cluster must let a process join it; without this bound Ray tries for many minutes."""
_LONGEST = 44
"""Characters that a temporary folder may have, for Ray's sockets in it to have names that the system takes."""


def count_workers(options: Options, nodes: Sequence[Mapping[str, float]]) -> int:
    """The number of workers; `auto` is as many as the nodes have GPUs for, or half their CPUs.

    Raises UsageError where the nodes have no room for as many as are asked for, or GPUs that nobody asked for.
    """
    gpus = sum(node.get("GPU", 0.0) for node in nodes)
    if gpus and not options.gpus and options.device != "cpu":
        what = f"the cluster has {gpus:g} GPUs, and workers reserve none"
        raise UsageError(what, where="engine.gpus", fix="set it, 1 for a GPU each, or set engine.device: cpu")
    if options.device == "cuda" and not options.gpus:
        raise UsageError("workers on a GPU must reserve one", where="engine.gpus", fix="set it, 1 for a GPU each")
    room = sum(_room(node, options) for node in nodes)
    share = sum(node.get("CPU", 0.0) for node in nodes) / 2 / options.cpus
    wanted = options.workers if options.workers != "auto" else max(1, room if options.gpus else min(room, int(share)))
    if wanted > room:
        each = f"{options.cpus:g} CPUs" + (f" and {options.gpus:g} GPUs" if options.gpus else "")
        what = f"the cluster has room for {room} workers that reserve {each} each, and {wanted} are asked for"
        raise UsageError(what, where="engine.workers", fix="lower it, engine.cpus or engine.gpus, or add nodes")
    return wanted


def _room(node: Mapping[str, float], options: Options) -> int:
    room = node.get("CPU", 0.0) // options.cpus
    return int(min(room, node.get("GPU", 0.0) / options.gpus) if options.gpus else room)


def import_ray(options: Options) -> Any:
    """Ray; for one that is started here, told before its import to keep to this machine and to itself.

    Raises UsageError where it is not installed.
    """
    if options.address is None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on any system: all of it listens on 127.0.0.1 alone
        if (
            "RAY_AUTH_MODE" not in os.environ
        ):  # keep out this machine's other users; Ray's own way is a file in the home folder
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        return import_module("ray")
    except ImportError as error:
        fix = 'run `pip install "fedloom[ray]"`'
        raise UsageError(
            "`engine: ray` needs Ray, which is not installed", where="engine", why=str(error), fix=fix
        ) from error


def connect(ray: Any, options: Options) -> Callable[[], object]:
    """Join the cluster at the address, or start one; returns what undoes that, at the latest when this process ends.

    Raises UsageError where that cannot be done.
    """
    if ray.is_initialized():
        return lambda: None
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if options.address is not None:
        _check_answers(options.address)
        ray.init(address=options.address, **quiet)
        return weakref.finalize(ray, ray.shutdown)
    folder = tempfile.mkdtemp(prefix="fedloom-ray-")
    if len(folder) > _LONGEST:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="fedloom-ray-", dir="/tmp")
    cpus = None if options.workers == "auto" else math.ceil(options.workers * options.cpus)
    disconnect = weakref.finalize(ray, _end, ray, folder)
    try:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet)
    except Exception as error:
        disconnect()
        fix = "give engine.address the cluster to join, or use `engine: local`"
        raise UsageError("Ray cannot be started here", where="engine", why=first_line(error), fix=fix) from error
    if ray.util.get_node_ip_address() != "127.0.0.1":
        disconnect()
        what = "Ray was imported before `engine: ray` could tell it to listen on this machine alone"
        raise UsageError(what, where="engine", fix="import it later, or call ray.init yourself and be joined")
    return disconnect


def _end(ray: Any, folder: str) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Join the cluster from another process first: one that does not answer would keep this one for many minutes, and end it.

    Raises UsageError where that is not done in time.
    """
    where, fix = "engine.address", "`ray status` there says whether one is running; `ray start --head` starts one"
    host, _, port = address.rpartition(":")
    if address != "auto":
        if not host or not port.isdigit() or "/" in host:
            raise UsageError(f"{address!r} is no address", where=where, fix="give host:port, or `auto`")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            what = f"no Ray cluster answers at {address}"
            raise UsageError(what, where=where, why=str(error), fix=fix) from error
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address], stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER,
            process_group=0, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        why = f"it could not be joined within {_ANSWER:.0f} seconds"
    else:
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"joining it ended with exit code {done.returncode}"
        if "AuthToken" in done.stderr:
            why = "it asks for another token than there is here, or for one at all"
            fix = "set RAY_AUTH_MODE=token, and copy its ~/.ray/auth_token or set RAY_AUTH_TOKEN"
    at = "on this machine" if address == "auto" else f"at {address}"
    raise UsageError(f"no Ray cluster answers {at}", where=where, why=why, fix=fix)


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
