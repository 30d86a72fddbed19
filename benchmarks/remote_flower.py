"""Flower really deployed, for `remote.py`: a SuperLink with TLS, node authentication and a database, and two SuperNodes."""

from __future__ import annotations

import shutil
from pathlib import Path

from remote_parts import (
    HERE,
    Measured,
    Memory,
    certificates,
    environment,
    free_port,
    listens,
    node_key,
    processes,
)

VERSION = "1.41.0"
PROJECT = """
[project]
name = "pingpong"
version = "1.0.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "pingpong.app:server"
clientapp = "pingpong.app:client"

[tool.flwr.app.config]
rounds = 1
numbers = 1
out = ""
"""


def measure(folder: Path, numbers: int, rounds: int) -> Measured:
    """Rounds of vectors of so many float32 numbers to and from two clients."""
    found = environment("flwr", "import flwr, numpy", [f"flwr=={VERSION}", "numpy"])
    authority, certificate, key = certificates(folder)
    app = folder / "app"
    (app / "pingpong").mkdir(parents=True)
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "pingpong" / "__init__.py").touch()
    shutil.copy(HERE / "flower_deploy_app.py", app / "pingpong" / "app.py")
    home, port = folder / "home", free_port()
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "real"\n\n[superlink.real]\naddress = "127.0.0.1:{port}"\nroot-certificates = "{authority}"\n'
    )
    out = folder / "rounds.jsonl"
    variables = {
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "PATH": f"{found}:/usr/bin:/bin",
    }  # fmt: skip
    with processes(folder, **variables) as own:
        link = own.start("superlink", [
            found / "flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--ssl-ca-certfile", authority,
            "--ssl-certfile", certificate, "--ssl-keyfile", key, "--enable-supernode-auth", "--database", folder / "state.db",
            "--disable-runtime-dependency-installation",
        ])  # fmt: skip
        own.until(lambda: listens(port), 200, "the SuperLink")
        for k in (1, 2):
            public = node_key(folder / f"node{k}")
            own.run([found / "flwr", "supernode", "register", public, "real"], 200)
            own.start(f"supernode{k}", [
                found / "flower-supernode", "--root-certificates", authority, "--superlink", f"127.0.0.1:{port}",
                "--port", str(free_port()), "--auth-supernode-private-key", folder / f"node{k}",
            ])  # fmt: skip
        config = f'rounds={rounds} numbers={numbers} out="{out}"'
        with Memory({"SuperLink": link}, _name) as memory:
            own.run([found / "flwr", "run", app, "real", "--run-config", config])
            seconds, cpu = own.rounds(out, rounds)
    return Measured(seconds, memory.each, memory.together, cpu)


def _name(child: object) -> str:
    words = " ".join(child.cmdline())  # type: ignore[attr-defined]
    return next(
        (label for part, label in (("serverapp", "ServerApp"), ("superexec", "SuperExec")) if part in words), "other"
    )
