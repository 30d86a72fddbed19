"""Batches, losses and metrics, by hand."""

import math

import numpy as np
import pytest
import torch
from tiny import bound
from torch import nn

from fedloom.models.load import fingerprint
from fedloom.tasks.causal_lm import CausalLM
from fedloom.tasks.classification import Classification


class Table:
    columns = ("input_ids", "learnt", "label_id", "token_type_ids")

    def ragged(self, name):
        values = {
            "input_ids": [5, 6, 7, 8, 9, 5, 6],
            "learnt": [0, 0, 1, 1, 0, 0, 1],
            "token_type_ids": [0, 0, 1, 1, 0, 0, 0],
        }
        return np.array(values[name]), np.array([0, 4, 5, 7])

    def column(self, name):
        return np.array([2, 0, 1])


class Tokenizer:
    pad_token_id = 1


class Flat(nn.Module):
    """Every token and every label equally likely."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, input_ids, **_):
        return torch.zeros(*input_ids.shape[: self.shape], 10)


def test_causal_batch_by_hand():
    batch = CausalLM(Tokenizer(), None, []).collate(Table(), [np.array([0, 2]), np.array([1])])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 1, 1], [9, 1, 1, 1], [1, 1, 1, 1]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    assert batch.picks.tolist() == [1, 2, 4] and batch.targets.tolist() == [7, 8, 6]
    assert (batch.items, batch.rows, batch.lengths, batch.tokens) == ([3, 0], [2, 1], [4, 1], [6, 1])


def test_causal_loss_and_metrics_by_hand():
    """Ten equally likely tokens: log 10 for each of the three learnt ones; none is 0, which argmax says."""
    task = CausalLM(Tokenizer(), None, [])
    batch = task.collate(Table(), [np.array([0, 2]), np.array([1])])
    assert task.losses(Flat(2), batch).tolist() == pytest.approx([3 * math.log(10), 0.0])
    measured = {k: v.numpy() for k, v in task.measure(Flat(2), batch).items()}
    assert measured["items"].tolist() == [2, 1, 0, 0]
    assert task.metrics(measured) == pytest.approx({"loss": math.log(10), "token_accuracy": 0.0, "perplexity": 10.0})


def test_classification_by_hand():
    task = Classification(Tokenizer(), None, list("abcdefghij"))
    batch = task.collate(Table(), [np.array([0, 2]), np.array([1])])
    assert batch.targets.tolist() == [2, 1, 0, -100] and batch.items == [2, 1]
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert task.losses(Flat(1), batch).tolist() == pytest.approx([2 * math.log(10), math.log(10)])


def test_macro_f1_by_hand():
    """a: 1 right of 2, said twice: F1 1/2; b: 1 right of 2, said twice: 1/2; c: never there, never said: left out."""
    task = Classification(Tokenizer(), None, ["a", "b", "c"])
    rows = {"loss": np.ones(4), "label": np.array([0, 0, 1, 1]), "prediction": np.array([0, 1, 1, 0])}
    assert task.metrics(rows) == pytest.approx({"loss": 1.0, "accuracy": 0.5, "macro_f1": 0.5, "mcc": 0.0})
    rows["prediction"] = np.array([0, 0, 0, 2])
    mcc = (2 * 4 - 6) / math.sqrt((16 - 10) * (16 - 8))  # t = (2, 2, 0), p = (3, 0, 1)
    assert task.metrics(rows) == pytest.approx({"loss": 1.0, "accuracy": 0.5, "macro_f1": (2 * 2 / 5) / 3, "mcc": mcc})


@pytest.mark.parametrize(
    ("confusion", "accuracy", "macro_f1", "mcc"),
    [
        # Two labels: (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) = (6 * 3 - 1 * 2) / sqrt(8 * 7 * 5 * 4).
        ([[6, 1], [2, 3]], 9 / 12, (12 / 15 + 6 / 9) / 2, 16 / math.sqrt(8 * 7 * 4 * 5)),
        # Three labels, t = (3, 3, 4), p = (4, 3, 3), c = 5, s = 10: (50 - 33) / sqrt((100 - 34)(100 - 34)) = 17 / 66.
        ([[2, 1, 0], [1, 1, 1], [1, 1, 2]], 5 / 10, (4 / 7 + 2 / 6 + 4 / 7) / 3, (50 - 33) / 66),
        # The third label is absent and never predicted; all is right.
        ([[2, 0, 0], [0, 2, 0], [0, 0, 0]], 1.0, 1.0, 1.0),
        # All wrong, of two labels.
        ([[0, 3], [3, 0]], 0.0, 0.0, -1.0),
        # Only one label occurs, and only it is predicted: no correlation is defined.
        ([[4, 0], [0, 0]], 1.0, 1.0, 0.0),
    ],
)
def test_metrics_of_a_confusion_matrix(confusion, accuracy, macro_f1, mcc):
    """Rows are true labels, columns predictions."""
    counts = np.array(confusion)
    label, prediction = (np.repeat(part.ravel(), counts.ravel()) for part in np.indices(counts.shape))
    task = Classification(Tokenizer(), None, ["a", "b", "c"][: len(counts)])
    found = task.metrics({"loss": np.ones(len(label)), "label": label, "prediction": prediction})
    assert found == pytest.approx({"loss": 1.0, "accuracy": accuracy, "macro_f1": macro_f1, "mcc": mcc})


def test_gradients_are_the_same_when_recomputed():
    """Gradient checkpointing recomputes, dropout included, and changes nothing else."""
    from fedloom.models.dropout import Block
    from fedloom.models.load import _enable_checkpointing

    ids = torch.randint(1, 96, (2, 6), generator=torch.Generator().manual_seed(0))
    block = [Block((0, 1, "c", 0), 2, 6)]
    grads = []
    for checkpointed in (False, True):
        binding = bound("llama", dropout=0.3)
        if checkpointed:
            _enable_checkpointing(binding.model.get_base_model())
            calls = []
            layer = binding.model.get_base_model().model.layers[0].self_attn
            layer.register_forward_hook(lambda *a, calls=calls: calls.append(1))
        with binding.dropouts.active(block):
            binding.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.square().mean().backward()
        grads.append(binding.home.grads.clone())
    assert len(calls) == 2, "the layer ran again on the way back"
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-7)


def test_fingerprint_knows_the_weights_but_not_a_new_head():
    class Judge(nn.Sequential):
        def __init__(self):
            super().__init__()
            self.body, self.score = nn.Linear(4, 4), nn.Linear(4, 2)

    torch.manual_seed(0)
    one, two = Judge(), Judge()
    two.body.load_state_dict(one.body.state_dict())
    assert fingerprint(one, ["score"]) == fingerprint(two, ["score"])
    assert fingerprint(one) != fingerprint(two)
    two.body.weight.data.mul_(1.001)
    assert fingerprint(one, ["score"]) != fingerprint(two, ["score"])
