"""The peer, in a process and an environment of its own: one federated round of Apple's pfl-research for every line asked.

Usage: pfl_child.py FOLDER, which holds `setting.json`, `start.safetensors` (all parameters of the model) and
`tokens.safetensors` (`[clients, rows, tokens]`, rows in the order of the steps). For each line on standard input, a line
`{"seconds": CPU seconds of the round}` on standard output; after the first, `FOLDER/pfl.safetensors` holds the result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from common import LEARNING_RATE, Size, build_model, trainable
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm import FederatedAveraging, NNAlgorithmParams
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from safetensors.torch import load_file, save_file


def _loss(self: Any, **inputs: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = self(**inputs).loss
    return loss


@torch.no_grad()
def _metrics(self: Any, **inputs: torch.Tensor) -> dict[str, Weighted]:
    rows = len(inputs["input_ids"])
    return {"loss": Weighted(self(**inputs).loss.item() * rows, rows)}


class OnRequest(TrainingProcessCallback):  # type: ignore[misc]
    """Between two rounds: report the last, wait to be asked, go back to the start.

    pfl always evaluates in its first round, so that one is neither timed nor reported.
    """

    def __init__(self, parameters: dict[str, torch.nn.Parameter], folder: Path) -> None:
        self._parameters, self._folder = parameters, folder
        self._start = {name: p.detach().clone() for name, p in parameters.items()}
        self._began: float | None = None

    def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
        """One request; the end of the input ends the run."""
        if self._began is not None:
            seconds = time.process_time() - self._began
            result = self._folder / "pfl.safetensors"
            if not result.exists():
                save_file({name: p.detach().clone() for name, p in self._parameters.items()}, result)
            print(json.dumps({"seconds": seconds}), flush=True)
        asked = sys.stdin.readline()
        with torch.no_grad():
            for name, value in self._start.items():
                self._parameters[name].copy_(value)
        self._began = time.process_time()
        return not asked, Metrics()


def main() -> None:
    """Serve rounds until the input ends."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    setting = json.loads((folder / "setting.json").read_text())
    network = build_model(Size(**setting["size"]))
    network.load_state_dict(load_file(folder / "start.safetensors"), strict=True)
    network.loss, network.metrics = MethodType(_loss, network), MethodType(_metrics, network)
    tokens = load_file(folder / "tokens.safetensors")["tokens"]
    users = [str(k) for k in range(len(tokens))]
    sets = {
        user: PyTorchTensorDataset(
            {"input_ids": rows, "attention_mask": torch.ones_like(rows), "labels": rows}, user_id=user
        )
        for user, rows in zip(users, tokens, strict=True)
    }
    turn = iter(range(sys.maxsize))
    clients = FederatedDataset(sets.__getitem__, lambda: users[next(turn) % len(users)])
    parameters = trainable(network)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=sys.maxsize,
            evaluation_frequency=sys.maxsize,
            train_cohort_size=len(users),
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=clients, val_data=clients),
        model=PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(list(parameters.values()), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=setting["batch"]
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=64),
        callbacks=[OnRequest(parameters, folder)],
        send_metrics_to_platform=False,
    )


if __name__ == "__main__":
    main()
