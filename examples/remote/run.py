"""One command: a federation of three organisations on this machine, and the same experiment in one process.

Writes the three owners' files from a packaged sample, makes the authority, certificates and keys, starts the broker with its
coordinator and three clients, hands the experiment over under four algorithms, and compares what comes out with `engine: local`
and, where it is installed, `engine: ray`.

Run:  python examples/remote/run.py [--folder DIR] [--algorithms fedavg,scaffold,...]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLIENTS = ("films", "products", "tweets")
ALGORITHMS = ("fedavg", "scaffold", "fedyogi", "fedex_lora")
ROWS = 400  # of each client
FEDLOOM = [sys.executable, "-m", "fedloom"]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/remote-example"))
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    write_data(folder)
    for file in HERE.glob("*.yaml"):
        shutil.copy(file, folder)
    port = free_port()
    plan = f"name: sentiment\nbroker: {{host: 127.0.0.1, port: {port}}}\nclients: [{', '.join(CLIENTS)}]\n"
    (folder / "federation.yaml").write_text(plan)
    fedloom("federation", "init", "federation.yaml", "--out", "federation", folder=folder)

    same = True
    kits = folder / "federation" / "kits"
    with Processes(folder) as started:
        started.begin("serve", str(kits / "coordinator"), "--folder", "coordinator")
        for client in CLIENTS:
            site = ["--site", f"site-{client}.yaml", "--state", f"state-{client}"]
            started.begin("join", str(kits / client), *site)
        for algorithm in given.algorithms.split(","):
            chosen = ["experiment.yaml", f"algorithm={algorithm}", f"name={algorithm}"]
            found = {"remote": remote(folder, kits / "operator", chosen)}
            for engine in ("local", *(["ray"] if has_ray() else [])):
                said = fedloom(
                    "run", *chosen, f"engine={{kind: {engine}, threads: 1}}", "--out", engine, "--json", folder=folder
                )
                found[engine] = json.loads(said)["adapter_sha256"]
            for engine, digest in found.items():
                print(f"{algorithm:12} {engine:7} adapter_sha256 {digest}", flush=True)
            same = same and len(set(found.values())) == 1
    print("the same bytes on every engine" if same else "NOT the same bytes")
    sys.exit(0 if same else 1)


def remote(folder: Path, kit: Path, chosen: list[str]) -> str:
    """Hand an experiment over, follow it, and read the digest in its run."""
    said = fedloom("run", *chosen, f"engine={{kind: remote, kit: {kit}, threads: 1}}", folder=folder)
    path = Path(said.rsplit("its run: ", 1)[1].strip())
    return str(json.loads((path / "manifest.json").read_text())["adapter_sha256"])


def write_data(folder: Path) -> None:
    """Each owner's rows in a file of its own kind, and all of them in one for the simulation."""
    import pandas as pd

    from fedloom import api
    from fedloom.data.sources import open_source

    experiment = api.load(HERE.parent / "sentiment-across-platforms.yaml")
    rows = pd.DataFrame([dict(row.values) for row in open_source(experiment.data, experiment.base)])
    folder.mkdir(parents=True)
    own = {client: rows[rows.platform == client].head(ROWS)[["text", "label"]] for client in CLIENTS}
    own["films"].rename(columns={"text": "review", "label": "verdict"}).to_csv(folder / "films.csv", index=False)
    own["products"].to_json(folder / "products.jsonl", orient="records", lines=True)
    tweets = (
        own["tweets"].assign(mood=(own["tweets"].label == "positive").astype(int)).rename(columns={"text": "tweet"})
    )
    tweets[["tweet", "mood"]].to_parquet(folder / "tweets.parquet")
    pd.concat([frame.assign(client=client) for client, frame in own.items()]).to_csv(
        folder / "everyone.csv", index=False
    )


class Processes:
    """What runs beside this script; ended with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[bytes]]()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()

    def begin(self, *words: str) -> None:
        """Start a verb; what it says goes to a file."""
        log = (self.folder / f"{words[0]}-{len(self.started)}.log").open("wb")
        process = subprocess.Popen([*FEDLOOM, *words], cwd=self.folder, env=environment(), stdout=log, stderr=log)
        self.started.append(process)
        time.sleep(1)
        if process.poll() is not None:
            sys.exit(f"`fedloom {' '.join(words)}` has ended:\n{Path(log.name).read_text()}")


def fedloom(*words: str, folder: Path) -> str:
    """What a verb prints."""
    done = subprocess.run([*FEDLOOM, *words], cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"`fedloom {' '.join(words)}` ended with {done.returncode}")
    return done.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def has_ray() -> bool:
    from importlib.util import find_spec

    return find_spec("ray") is not None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
