"""The peer, in a process and an environment of its own: a round's aggregation by one of Flower's strategies for every line asked.

Usage: flower_child.py FOLDER CLIENTS; FOLDER holds `start.npy` `[n]` and `rows.npy` `[K, n]`: client k ends at row k modulo K and
weighs k + 1. For each line on standard input, the name of a strategy, a line `{"seconds": CPU seconds of its aggregate_fit}` on
standard output, null where there is no such strategy.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.server import strategy


def make_strategy(kind: Any, start: Any) -> Any:
    """A strategy before its first round, with what its kind requires."""
    offered = {
        "initial_parameters": ndarrays_to_parameters([start]),
        "evaluate_fn": lambda *_: (1.0, {}),
        "proximal_mu": 0.1,
        "server_momentum": 0.9,
    }
    made = kind(**{name: value for name, value in offered.items() if name in inspect.signature(kind).parameters})
    if hasattr(made, "pre_weights"):
        made.pre_weights = [start]
    return made


def main() -> None:
    """Serve rounds until the input ends."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    folder, clients = Path(sys.argv[1]), int(sys.argv[2])
    start, rows = np.load(folder / "start.npy"), np.load(folder / "rows.npy")
    parameters = [ndarrays_to_parameters([row]) for row in rows]
    results = [
        (None, FitRes(Status(Code.OK, ""), parameters[k % len(rows)], num_examples=k + 1, metrics={}))
        for k in range(clients)
    ]
    for line in sys.stdin:
        kind = getattr(strategy, line.strip(), None)
        seconds = None
        if kind is not None:
            made = make_strategy(kind, start)
            began = time.process_time()
            made.aggregate_fit(1, results, [])
            seconds = time.process_time() - began
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
