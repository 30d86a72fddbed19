"""Flower's part of `remote.py`, in a process and an environment of its own: a ServerApp that sends a vector and takes the mean.

A client adds its number to what it got, so that no two messages are alike (Flower stores and sends equal ones once).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

server = ServerApp()
client = ClientApp()


@client.query()
def answer(message: Message, context: Context) -> Message:
    """The vector and this client's number."""
    (w,) = message.content["w"].to_numpy_ndarrays()
    number = np.float32(message.content["to"]["number"])
    return Message(content=RecordDict({"w": ArrayRecord([w + number])}), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """So many rounds, each written down when its mean is there."""
    settings: dict[str, Any] = context.run_config
    nodes: list[int] = []
    while len(nodes) < 2:
        nodes = sorted(grid.get_node_ids())
        time.sleep(0.2)
    w = np.random.default_rng(0).standard_normal(int(settings["numbers"]), dtype=np.float32)
    for number in range(int(settings["rounds"])):
        began, expected = time.perf_counter(), w[:8] + np.float32(1.5)
        record = ArrayRecord([w])
        contents = [RecordDict({"w": record, "to": ConfigRecord({"number": k + 1})}) for k in range(len(nodes))]
        messages = [
            Message(content=own, dst_node_id=node, message_type="query", group_id=str(number))
            for own, node in zip(contents, nodes, strict=True)
        ]
        total = np.zeros_like(w)
        for reply in grid.send_and_receive(messages, timeout=600):
            if reply.has_error():
                raise RuntimeError(f"round {number}: {reply.error}")
            total += reply.content["w"].to_numpy_ndarrays()[0]
        w = total / np.float32(len(nodes))
        seconds = time.perf_counter() - began
        if not np.allclose(w[:8], expected, atol=1e-4):
            raise RuntimeError(f"round {number}: the mean is {w[:8]}, not {expected}")
        with Path(str(settings["out"])).open("a") as out:
            out.write(json.dumps({"seconds": seconds}) + "\n")
