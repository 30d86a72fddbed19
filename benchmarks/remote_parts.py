"""What the contestants of `remote.py` share: processes ended by their ids, their memory, certificates, environments, rounds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

HERE = Path(__file__).parent
MB = 1e6
ENOUGH = 900.0
"""Seconds that a contestant has for all its rounds of a size."""


class Measured(NamedTuple):
    """What a contestant came to at one size."""

    seconds: list[float]
    """Of every round, the first included."""
    server: dict[str, float]
    """Peak resident bytes of each process on the server's side, by what it is."""
    together: float
    """The most that they held at one time."""
    cpu: float
    """CPU seconds a round of all processes, the clients' included, from the end of the first round to that of the last."""

    @property
    def median(self) -> float:
        """Seconds a round, the first left out."""
        return statistics.median(self.seconds[1:])


class Processes:
    """Processes of one contestant: started in a folder, their words in files there, ended by their ids with all their children."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(environment)
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str | Path]) -> int:
        """Start a process that stays; its id."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(word) for word in command], cwd=self.folder, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._started[name] = process
        return process.pid

    def run(self, command: Sequence[str | Path], timeout: float = 300.0) -> str:
        """Run a command to its end; what it said."""
        done = subprocess.run(
            [str(word) for word in command], cwd=self.folder, env=self._environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(
                f"{command[0]} {command[1]} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
            )
        return done.stdout

    def said(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def check(self) -> None:
        """Give up where a process has ended."""
        for name, process in self._started.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}:\n{self.said(name)[-3000:]}")

    def until(self, true: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until something is true; give up after so many seconds."""
        end = time.monotonic() + seconds
        while not true():
            self.check()
            if time.monotonic() > end:
                tails = "\n".join(f"--- {name}\n{self.said(name)[-1500:]}" for name in self._started)
                raise SystemExit(f"{what}: not within {seconds:.0f} s\n{tails}")
            time.sleep(0.05)

    def rounds(self, out: Path, wanted: int) -> tuple[list[float], float]:
        """Wait for so many rounds to be written down: their seconds, and CPU seconds a round after the first."""
        self.until(lambda: len(rounds_in(out)) >= 1, ENOUGH, "the first round")
        began, cpu = len(rounds_in(out)), self._cpu()
        self.until(lambda: len(rounds_in(out)) >= wanted, ENOUGH, f"{wanted} rounds")
        seconds = rounds_in(out)
        return seconds, (self._cpu() - cpu) / max(1, len(seconds) - began)

    def _cpu(self) -> float:
        """CPU seconds so far of all that was started, of their children, and of children that have ended."""
        total = 0.0
        for process in self._started.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                own = psutil.Process(process.pid)
                for one in [own, *own.children(recursive=True)]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        total += sum(one.cpu_times()[:4])
        return total

    def close(self) -> None:
        """End everything that was started, children first asked, then killed, each by its id."""
        everyone: list[psutil.Process] = []
        for process in reversed(self._started.values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                own = psutil.Process(process.pid)
                everyone += [own, *own.children(recursive=True)]
        for one in everyone:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.terminate()
        for one in psutil.wait_procs(everyone, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self._started.values():
            process.wait(timeout=20)


@contextmanager
def processes(folder: Path, **environment: str) -> Iterator[Processes]:
    """Processes that are gone afterwards, whatever happens."""
    own = Processes(folder, environment)
    try:
        yield own
    finally:
        own.close()


class Memory:
    """Watches the resident memory of processes and of all their children, every 20 ms, until it is left."""

    def __init__(self, pids: Mapping[str, int], name: Callable[[psutil.Process], str] | None = None) -> None:
        self._pids, self._name = pids, name
        self.each: dict[str, float] = {}
        self.together = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            total = 0.0
            for label, process in self._all():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                    total += process.memory_info().rss
                    self.each[label] = max(self.each.get(label, 0.0), _peak(process.pid))
            self.together = max(self.together, total)

    def _all(self) -> Iterator[tuple[str, psutil.Process]]:
        for label, pid in self._pids.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                own = psutil.Process(pid)
                yield label, own
                for child in own.children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                        yield (self._name(child) if self._name else f"{label}'s child"), child


def _peak(pid: int) -> float:
    """The most that a process ever held, which no sampling misses."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def environment(name: str, check: str, wanted: Sequence[str]) -> Path:
    """The folder of executables of a peer's environment, which is made on first use."""
    home = HERE / f".venv-{name}"
    python = home / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", check], capture_output=True, check=False).returncode:
        venv.create(home, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], check=True)
    return home / "bin"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as own:
        own.settimeout(1.0)
        return own.connect_ex(("127.0.0.1", port)) == 0


def certificates(folder: Path) -> tuple[Path, Path, Path]:
    """An authority of its own, and a certificate and key for 127.0.0.1 from it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def make(
        name: str, issuer: x509.Name | None, signer: ec.EllipticCurvePrivateKey | None
    ) -> ec.EllipticCurvePrivateKey:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer or subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=1)).add_extension(x509.BasicConstraints(signer is None, None), critical=True)
        )  # fmt: skip
        if signer is not None:
            names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        content = made.sign(signer or key, hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(content.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / f"{name}.key").write_bytes(pem)
        return key

    authority = make("authority", None, None)
    make("server", x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]), authority)
    return folder / "authority.crt", folder / "server.crt", folder / "server.key"


def node_key(path: Path) -> Path:
    """A private key of curve P-384 in OpenSSH's format at a path, and its public half beside it; the path of that."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()))
    path.chmod(0o600)
    public = path.with_suffix(".pub")
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"
    )
    return public


def rounds_in(file: Path) -> list[float]:
    """Seconds of the rounds that a server has written down so far, a JSON object a line."""
    if not file.exists():
        return []
    return [
        float(json.loads(line)["seconds"]) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")
    ]


def first_vector(numbers: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What the first round sends: random numbers, which nothing can compress or send once for all."""
    return np.random.default_rng(0).standard_normal(numbers, dtype=np.float32)
