"""The peer, in a process and an environment of its own: Flower's simulation, whose clients answer with rows made beforehand.

Usage: flower_rounds_child.py FOLDER WORKERS; FOLDER holds `start.npy` `[n]`, `rows.npy` `[K, n]` and `weights.npy`: client k ends
at row k modulo K. For each line on standard input, one round of FedAvg over all clients and, on standard output, a line
`{"seconds": ..., "difference": ...}`: wall time from sampling to the new model, and how far that is from the mean of the rows.
"""

from __future__ import annotations

import json
import os
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its Ray listens on 127.0.0.1 alone

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client, server = ClientApp(), ServerApp()


@cache
def given(name: str) -> Any:
    """What the clients learnt, and weigh."""
    return np.load(Path(os.environ["ROUNDS_FOLDER"]) / f"{name}.npy")


@client.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the client's row, as whole weights."""
    k, rows = int(context.node_config["partition-id"]), given("rows")
    content = {
        "arrays": ArrayRecord([rows[k % len(rows)]]),
        "metrics": MetricRecord({"num-examples": float(given("weights")[k])}),
    }
    return Message(content=RecordDict(content), reply_to=message)


class Timed(FedAvg):
    """FedAvg that waits for a line before every round, and tells how long it took."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Grid) -> Any:
        """The round begins when it is asked for."""
        if not sys.stdin.readline():
            os._exit(0)
        self.began = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """The round ends with the new model."""
        arrays, metrics = super().aggregate_train(server_round, replies)
        seconds = time.perf_counter() - self.began
        weights, rows = given("weights"), given("rows")
        shares = np.bincount(np.arange(len(weights)) % len(rows), weights, len(rows)) / weights.sum()
        difference = float(np.abs(arrays.to_numpy_ndarrays()[0] - shares @ rows).max())
        print(json.dumps({"seconds": seconds, "difference": difference}), flush=True)
        return arrays, metrics


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Rounds until the input ends."""
    clients = len(given("weights"))
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([given("start")]), num_rounds=1_000_000)


def simulate(workers: int) -> None:
    """Start the simulation."""
    resources = {"init_args": {"num_cpus": workers, "include_dashboard": False}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, client, num_supernodes=len(given("weights")), backend_config=resources)


if __name__ == "__main__":
    import flower_rounds_child  # by its name its workers find it too

    os.environ["ROUNDS_FOLDER"] = sys.argv[1]
    flower_rounds_child.simulate(int(sys.argv[2]))
