"""Every packaged sample, fetched and converted for real; cached, so slow only the first time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fedloom.config.schema import Data, IidPartition
from fedloom.data.fetch import fetch
from fedloom.data.samples import SAMPLES
from fedloom.data.sources import Source, open_source

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Counted from the packages themselves, by other means, before the conversions were written.
COUNTS: dict[str, tuple[int, str, dict[str, int]]] = {
    "chatterbot": (7634, "language", {"english": 2025, "persian": 773, "japanese": 568, "italian": 562, "thai": 6}),
    "bbc-news": (2225, "topic", {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}),
    "sentiment-platforms": (
        23_320,  # 23,703, of which 383 have mean 0
        "platform",
        {"tweets": 4196, "films": 10_568, "products": 3610, "editorials": 4946},
    ),
    "easy-vqa": (48_248, "split", {"train": 38_575, "test": 9673}),
    "gsm8k-test": (1319, "question", {}),
    "humaneval": (164, "task_id", {"HumanEval/0": 1, "HumanEval/163": 1}),
    "movielens-100k": (100_000, "gender", {"M": 74_260, "F": 25_740}),
    "spam-assassin": (6046, "label", {"ham": 4150, "spam": 1896}),
}


def opened(name: str) -> Source:
    if SAMPLES[name].npm and shutil.which("npm") is None:
        pytest.skip("needs npm")
    return open_source(Data(source=f"sample:{name}", partition=IidPartition(kind="iid", clients=1)), Path())


@pytest.mark.parametrize("name", COUNTS)
def test_a_data_set_holds_what_was_counted(name: str) -> None:
    found = opened(name)
    rows = list(found)
    total, column, counts = COUNTS[name]
    assert len(rows) == total == SAMPLES[name].rows
    assert set(found.columns) == set(rows[0].values) == set(SAMPLES[name].columns)
    seen = Counter(str(row.values[column]) for row in rows)
    assert {value: seen[value] for value in counts} == counts


def test_labels_agree_with_scores() -> None:
    rows = [row.values for row in opened("sentiment-platforms")]
    assert all((row["score"] > 0) == (row["label"] == "positive") and row["score"] != 0 for row in rows)  # type: ignore[operator]
    assert Counter(row["label"] for row in rows) == {"positive": 12_471, "negative": 10_849}


def test_images_are_there() -> None:
    images = {str(row.values["image"]) for row in opened("easy-vqa")}
    assert len(images) == 5000
    assert all(Path(image).read_bytes()[:4] == b"\x89PNG" for image in sorted(images)[:20])


def test_ratings_are_joined_with_people_and_films() -> None:
    rows = [row.values for row in opened("movielens-100k")]
    assert len({row["user_id"] for row in rows}) == 943 and len({row["item_id"] for row in rows}) == 1682
    first = rows[0]
    assert (first["user_id"], first["item_id"], first["rating"]) == (196, 242, 3)
    assert (first["age"], first["occupation"], first["movie_title"]) == (49, "writer", "Kolya")


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "smollm2-135m-instruct"])
def test_a_model_folder_is_whole(name: str) -> None:
    folder = fetch(name)
    manifest = json.loads((folder / "sample.json").read_text())
    assert manifest["digest"] == SAMPLES[name].digest
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(manifest["files"])


def test_smollm2_is_plain_fp32_with_its_tokens_and_knows_a_capital() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch("smollm2-135m-instruct")
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        said = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, prompt["input_ids"].shape[1] :])


def test_minilm_gives_close_vectors_to_close_sentences() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = fetch("all-minilm-l6-v2")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = ["A man is eating food.", "A man eats something.", "The stock market fell sharply."]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    near, far = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert near > 0.7 > 0.3 > far


def test_two_processes_fetch_one_sample_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedloom.data.fetch import fetch;"
        "seen = []; fetch('humaneval', cache=Path(sys.argv[1]), progress=lambda s, f: seen.append(s)); print(len(seen))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    steps = sorted(int(process.communicate(timeout=300)[0]) for process in processes)
    assert steps[0] == 0 < steps[1]
