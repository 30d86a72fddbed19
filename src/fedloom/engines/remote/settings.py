"""The configuration of the broker that a coordinator starts: written from its kit, again whenever the kit changes.

Its paths are relative to the folder it is in, from which the server is started: the kit can be moved.
"""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from fedloom.engines.remote.definition import BrokerPlan
from fedloom.engines.remote.kit import Kit
from fedloom.engines.remote.permissions import accounts
from fedloom.errors import UsageError
from fedloom.files import write_atomic

__all__ = ["BROKER_FOLDER", "MAX_PAYLOAD", "listen_address", "write_settings"]

BROKER_FOLDER = "broker"
CERTIFICATE_FILE, KEY_FILE = "tls.pem", "tls.key"
SETTINGS_FILE, ACCOUNTS_FILE, STORE, LOG_FILE, PID_FILE = (
    "broker.conf",
    "accounts.conf",
    "store",
    "broker.log",
    "broker.pid",
)

MAX_PAYLOAD = (1 << 20) + (1 << 16)
"""Bytes of a message: a chunk of 1 MiB, and its headers."""


def listen_address(plan: BrokerPlan) -> str:
    """Where a broker listens: as told; else on loopback, when that is where clients dial, or on every address."""
    if plan.listen is not None:
        return plan.listen
    host = plan.host or ""
    try:
        loopback = ip_address(host).is_loopback
    except ValueError:
        return "127.0.0.1" if host == "localhost" else "0.0.0.0"
    return host if loopback else "::" if ":" in host else "0.0.0.0"


def write_settings(kit: Kit) -> Path:
    """Write broker.conf and accounts.conf; returns their folder.

    `sync_interval: always`: what is acknowledged is on the disk. TLS comes before anything is said (see `connect_options`). Bounds
    on the time of a handshake leave room for hundreds of clients that come back at once. How much is stored is bounded in the
    account of the federation, which unlike the server's own bound may change while it runs.
    Raises UsageError when they cannot be written, or when the broker is the organisation's own.
    """
    if kit.broker is None:
        raise UsageError(
            "no broker is started for this federation: it uses the organisation's own", where=str(kit.folder)
        )
    folder, settings = kit.folder / BROKER_FOLDER, kit.broker
    address = f"[{settings.listen}]" if ":" in settings.listen else settings.listen
    lines = [
        "# Written by fedloom from the coordinator's kit, and written again: change the kit, not this file.",
        f"server_name: {json.dumps(f'fedloom-{kit.federation}')}",
        f'listen: "{address}:{settings.port}"',
        f'http: "127.0.0.1:{settings.monitor}"' if settings.monitor is not None else "# monitoring is off",
        f'tls {{cert_file: "{CERTIFICATE_FILE}", key_file: "{KEY_FILE}", handshake_first: true, timeout: 15}}',
        "authorization {timeout: 20}",
        f'jetstream {{store_dir: "{STORE}", max_mem: 64MB, max_file: 1000TB, sync_interval: always}}',
        f"max_payload: {MAX_PAYLOAD}",
        "max_pending: 64MB",
        'write_deadline: "30s"',
        'ping_interval: "20s"',
        "ping_max: 3",
        f'log_file: "{LOG_FILE}"',
        "logfile_size_limit: 20MB",
        "logfile_max_num: 3",
        f'pid_file: "{PID_FILE}"',
        f"accounts {{ include '{ACCOUNTS_FILE}' }}",
    ]
    parties = accounts(
        kit.federation, kit.coordinator, (kit.operator_name, kit.operator), kit.clients, disk=settings.disk
    )
    try:
        write_atomic(folder / ACCOUNTS_FILE, parties)
        write_atomic(folder / SETTINGS_FILE, "\n".join([*lines, ""]))
    except OSError as error:
        raise UsageError(f"the broker's settings cannot be written: {error.strerror}", where=str(folder)) from error
    return folder
