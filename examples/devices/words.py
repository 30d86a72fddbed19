"""A model of one's own that is quick to train: a bag of words, named `words:bag` in `experiment.yaml`."""

import torch
import transformers
from torch import Tensor, nn

from fedloom.data.fetch import fetch

ROWS, WIDTH = 4096, 16


class Bag(nn.Module):
    """The mean of the vectors of a text's tokens, which share 4,096 vectors among them, and a linear map to the labels."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, WIDTH)
        self.classifier = nn.Linear(WIDTH, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Tensor) -> Tensor:
        real = attention_mask.unsqueeze(-1).float()
        mean = (self.embedding(input_ids % ROWS) * real).sum(1) / real.sum(1).clamp_min(1)
        logits: Tensor = self.classifier(mean)
        return logits


def bag(labels: list[str]) -> tuple[Bag, transformers.PreTrainedTokenizerBase]:
    """The bag, and the tokenizer of MiniLM."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(fetch("all-minilm-l6-v2"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bag(len(labels)), tokenizer
