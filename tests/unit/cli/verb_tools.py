"""Shared by the tests of the verbs: run one in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from typer.testing import CliRunner

from fedloom.cli.app import app

# A run slow enough to be interrupted, a disk that fills up, losses that are not finite: switched on by the environment, so that
# the same model can also run without.
TROUBLE = '''

import os
import resource
import sys
import time


class Troubled(tf.LlamaForCausalLM):
    """Counts its forward passes; each may be slow, one may fill the disk."""

    passes = 0

    def forward(self, *args, **kwargs):
        Troubled.passes += 1
        if "SLOW" in os.environ:
            print("pass", Troubled.passes, file=sys.stderr)
            time.sleep(float(os.environ["SLOW"]))
        if Troubled.passes == int(os.environ.get("FULL_AFTER", 0)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        return super().forward(*args, **kwargs)


class Spoiled(tf.LlamaForCausalLM):
    """Not finite wherever the input holds a word of topic-2."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hit = ((input_ids >= 34) & (input_ids < 49)).any(1)
        x = self.get_input_embeddings()(input_ids)
        x = torch.where(hit[:, None, None], float("nan"), x)
        return super().forward(inputs_embeds=x, attention_mask=attention_mask)


def spoiled(labels):
    torch.manual_seed(3)
    return Spoiled(tf.LlamaConfig(**SHAPE, num_key_value_heads=2)), tokenizer()


def troubled(labels):
    torch.manual_seed(3)
    return Troubled(tf.LlamaConfig(**SHAPE, num_key_value_heads=2)), tokenizer()
'''


class Done(NamedTuple):
    """How a verb ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message: one paragraph, told once, without a traceback."""
        assert "Traceback" not in self.err and "fault of fedloom" not in self.err, self.err
        assert self.err.count("error: ") == 1, self.err
        message = self.err[self.err.index("error: ") :].rstrip("\n")
        assert "\n\n" not in message
        return message


def fedloom(*args: object) -> Done:
    """A verb, in this process."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return Done(result.exit_code, result.stdout, result.stderr)


class Process:
    """A verb in a process of its own, whose lines can be awaited."""

    def __init__(self, *args: object, **environment: object) -> None:
        own = {**os.environ, "PYTHONUNBUFFERED": "1", **{k: str(v) for k, v in environment.items()}}
        command = [sys.executable, "-m", "fedloom", *map(str, args)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own, cwd=Path.cwd()
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._seen: list[str] = []
        threading.Thread(target=self._pump, daemon=True).start()

    def _pump(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Until a line of stderr holds the text."""
        end = time.monotonic() + seconds
        while True:
            line = self._lines.get(timeout=max(end - time.monotonic(), 0.1))
            assert line is not None, f"ended without {text!r}: {''.join(self._seen)}"
            self._seen.append(line)
            if text in line:
                return

    def end(self, seconds: float = 90) -> Done:
        """How it ended."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        while (line := self._lines.get(timeout=10)) is not None:
            self._seen.append(line)
        assert self.process.stdout is not None
        return Done(code, self.process.stdout.read(), "".join(self._seen))


def damaged_model(folder: Path) -> None:
    """A folder with a whole tokenizer and configuration, and weights that were cut off."""
    import transformers
    from tiny import CAUSAL
    from tokenizers import Tokenizer, models

    model = CAUSAL["llama"]()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>").save_pretrained(
        folder
    )
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
