"""Tiny random models of real architectures, for tests of plumbing."""

from __future__ import annotations

import torch
import transformers as tf
from torch import nn

from fedloom.config.schema import FullAdapter, LoraAdapter
from fedloom.models.adapters import attach
from fedloom.models.binding import Binding

COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
CAUSAL = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**COMMON, intermediate_size=64, num_key_value_heads=2)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**COMMON, intermediate_size=64, num_key_value_heads=2)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}
CLASSIFIERS = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**COMMON, intermediate_size=64, num_labels=3)),
    "roberta": lambda: tf.RobertaForSequenceClassification(
        tf.RobertaConfig(**COMMON, intermediate_size=64, num_labels=3, max_position_embeddings=80)
    ),
    "llama-cls": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**COMMON, intermediate_size=64, num_labels=3, pad_token_id=0)
    ),
}


def bound(
    name: str, *, dropout: float = 0.0, base_dropout: bool = False, full: bool = False, dtype=torch.float32
) -> Binding:
    """A tiny model with an adapter whose both factors are nonzero, so that every gradient is."""
    torch.manual_seed(7)
    model: nn.Module = {**CAUSAL, **CLASSIFIERS}[name]().to(dtype)
    model.config.use_cache = False
    model.requires_grad_(False)
    model.eval()
    config = FullAdapter(kind="full") if full else LoraAdapter(r=4, dropout=dropout)
    heads = ("classifier", "score") if name in CLASSIFIERS else ()
    task = "SEQ_CLS" if name in CLASSIFIERS else "CAUSAL_LM"
    binding = Binding(attach(model, config, peft_task=task, heads=heads, seed=0), base_dropout=base_dropout)
    binding.home.values.add_(torch.randn_like(binding.home.values) * 0.05)
    return binding
