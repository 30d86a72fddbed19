"""NVFlare really deployed, for `remote.py`: provisioned kits, mutual TLS, a server, two clients, and a job that pushes messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from remote_parts import HERE, Measured, Memory, environment, free_port, listens, processes

VERSION = "2.9.0"
PROJECT = """
api_version: 3
name: benchmark
description: two clients on loopback
participants:
  - {{name: localhost, type: server, org: benchmark, fed_learn_port: {port}, admin_port: {port}, default_host: localhost}}
  - {{name: site-1, type: client, org: benchmark}}
  - {{name: site-2, type: client, org: benchmark}}
  - {{name: admin@benchmark.org, type: admin, org: benchmark, role: project_admin}}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {{template_file: [master_template.yml]}}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {{config_folder: config, scheme: grpc}}
  - {{path: nvflare.lighter.impl.cert.CertBuilder}}
  - {{path: nvflare.lighter.impl.signature.SignatureBuilder}}
"""
MODULE = "nvflare_deploy_app"


def measure(folder: Path, numbers: int, rounds: int, *, as_bytes: bool = False) -> Measured:
    """Rounds of vectors of so many float32 numbers to and from two clients, as arrays or as bytes."""
    found = environment("nvflare", "import nvflare", [f"nvflare=={VERSION}"])
    port, out = free_port(), folder / "rounds.jsonl"
    (folder / "project.yml").write_text(PROJECT.format(port=port))
    with processes(folder, PYTHONPATH=str(HERE), PATH=f"{found}:/usr/bin:/bin", HOME=str(folder)) as own:
        own.run([found / "nvflare", "provision", "-p", folder / "project.yml", "-w", folder / "made", "--force"])
        kits = {kit.name: kit for kit in (folder / "made" / "benchmark" / "prod_00").iterdir() if kit.is_dir()}
        for name in ("localhost", "site-1", "site-2"):
            _allow(kits[name], folder)
        job = _job(folder, {"numbers": numbers, "rounds": rounds, "out": str(out), "as_bytes": as_bytes})
        server = own.start("server", _command(found, "server", kits["localhost"], "server_train", "org=benchmark"))
        own.until(lambda: listens(port), 200, "NVFlare's server")
        for name in ("site-1", "site-2"):
            own.start(name, _command(found, "client", kits[name], "client_train", "org=benchmark", f"uid={name}"))
        own.until(
            lambda: len(re.findall(r"Successfully registered|joined. Sent token", _log(kits["localhost"]))) >= 2,
            200,
            "two clients",
        )
        with Memory(
            {"server": server},
            lambda child: "job process" if "runner_process" in " ".join(child.cmdline()) else "other",
        ) as memory:
            own.run([found / "python", HERE / f"{MODULE}.py", kits["admin@benchmark.org"], job])
            seconds, cpu = own.rounds(out, rounds)
    return Measured(seconds, memory.each, memory.together, cpu)


def _command(found: Path, side: str, kit: Path, module: str, *settings: str) -> list[str | Path]:
    return [
        found / "python", "-u", "-m", f"nvflare.private.fed.app.{side}.{module}", "-m", kit, "-s", f"fed_{side}.json",
        "--set", "secure_train=true", "config_folder=config", *settings,
    ]  # fmt: skip


def _log(kit: Path) -> str:
    file = kit / "log.txt"
    return file.read_text(errors="replace") if file.exists() else ""


def _allow(kit: Path, folder: Path) -> None:
    """A party's consent to classes of this benchmark; and jobs in a folder of their own."""
    local = kit / "local"
    file = next(f for f in (local / "resources.json", local / "resources.json.default") if f.exists())
    text = file.read_text().replace("/tmp/nvflare", str(folder / "store"))
    settings = json.loads(text)
    settings.setdefault("class_allow_list", []).append(f"{MODULE}.")
    (local / "resources.json").write_text(json.dumps(settings, indent=2))


def _job(folder: Path, settings: dict[str, Any]) -> Path:
    job = folder / "job"
    config = job / "app" / "config"
    config.mkdir(parents=True)
    (job / "meta.json").write_text(
        json.dumps({"name": "pingpong", "resource_spec": {}, "min_clients": 2, "deploy_map": {"app": ["@ALL"]}})
    )
    workflow = {"id": "rounds", "path": f"{MODULE}.Rounds", "args": settings}
    executor = {"tasks": ["*"], "executor": {"path": f"{MODULE}.Answerer", "args": {}}}
    server = {"format_version": 2, "workflows": [workflow], "components": []}
    client = {
        "format_version": 2,
        "executors": [executor],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    (config / "config_fed_server.json").write_text(json.dumps(server))
    (config / "config_fed_client.json").write_text(json.dumps(client))
    return job
