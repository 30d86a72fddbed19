"""A tiny project of a user's own, outside the tree: a model, a data set and experiment files that name them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from fedloom import api
from fedloom.config.schema import Experiment

OWN = '''
"""A user's own model and data: fedloom is told of them by name only."""
import random

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

WORDS = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(60)]


def tokenizer():
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


SHAPE = dict(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, initializer_range=0.3)


def language_model(labels):
    torch.manual_seed(3)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, num_key_value_heads=2)), tokenizer()


def other_language_model(labels):
    torch.manual_seed(4)
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SHAPE, num_key_value_heads=2)), tokenizer()


def classifier(labels):
    torch.manual_seed(3)
    return tf.BertForSequenceClassification(tf.BertConfig(**SHAPE, num_labels=len(labels))), tokenizer()


class Bag(nn.Module):
    """No transformers model at all: a bag of words."""

    def __init__(self, labels):
        super().__init__()
        self.table = nn.Embedding(64, 16)
        self.hidden = nn.Linear(16, 16)
        self.classifier = nn.Linear(16, labels)

    def forward(self, input_ids, attention_mask, **_):
        x = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return self.classifier(torch.relu(self.hidden(x.sum(1))))


def bag(labels):
    torch.manual_seed(3)
    return Bag(len(labels)), tokenizer()


def _text(r, low, high):
    return " ".join(f"w{r.randrange(low, high)}" for _ in range(r.randrange(2, 9)))


def pairs():
    """Questions of one topic are answered with that topic's word."""
    r = random.Random(0)
    for i in range(120):
        t = i % 4
        yield {"question": _text(r, 15 * t, 15 * t + 15), "answer": f"w{t} w{t}", "topic": f"topic-{t}"}


def texts():
    r = random.Random(0)
    for i in range(120):
        t = i % 3
        yield {"text": _text(r, 20 * t, 20 * t + 20), "label": f"label-{t}", "site": f"site-{i % 5}"}
'''

LANGUAGE = {
    "name": "tiny",
    "model": {"path": "own:language_model", "task": "causal_lm"},
    "adapter": {"kind": "lora", "r": 2, "targets": "all-linear"},
    "data": {
        "source": "own:pairs",
        "fields": {"instruction": "question", "output": "answer"},
        "template": "plain",
        "max_length": 24,
        "partition": {"kind": "column", "column": "topic"},
    },
    "federation": {"rounds": 3},
    "local": {"optimizer": "adamw", "lr": 0.02, "steps": 4, "batch_size": 4},
    "engine": {"kind": "local", "threads": 1, "device": "cpu"},
    "tensorboard": False,
}

CLASSIFY = LANGUAGE | {
    "model": {"path": "own:classifier", "task": "classification"},
    "data": {"source": "own:texts", "max_length": 24, "partition": {"kind": "column", "column": "site"}},
}


def project(folder: Path) -> Path:
    """Write `own.py` into a folder of a user's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.py").write_text(textwrap.dedent(OWN))
    return folder


def experiment(folder: Path, config: dict[str, Any], **changes: Any) -> Experiment:
    """An experiment in that folder; `changes` replace keys, written with `__` for the dots: federation__rounds=5."""
    return api.load(experiment_file(folder, config, **changes))


def experiment_file(folder: Path, config: dict[str, Any], **changes: Any) -> Path:
    """The experiment's file, not read."""
    import json

    project(folder)
    config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    file = folder / "experiment.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return file
