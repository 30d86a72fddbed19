from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedloom.data.samples import SAMPLES, cache_root, check_sample, sample_folder
from fedloom.errors import DataError

NAMES = {
    *("smollm2-135m-instruct", "all-minilm-l6-v2", "chatterbot", "bbc-news", "sentiment-platforms", "easy-vqa"),
    *("gsm8k-test", "humaneval", "movielens-100k", "spam-assassin"),
}


def test_the_catalogue_is_complete_and_pinned() -> None:
    assert set(SAMPLES) == NAMES
    for asset in SAMPLES.values():
        assert len(asset.sha256) == 64 and asset.version and asset.bytes > 0 and asset.disk > asset.bytes
        assert asset.members and (asset.kind == "model") == (not asset.columns)
    assert len({asset.digest for asset in SAMPLES.values()}) == len(SAMPLES)


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, fedloom.data.samples, fedloom.data.fetch;"
        "heavy = {'numpy', 'pyarrow', 'torch', 'transformers', 'datasets', 'rich', 'requests'} & set(sys.modules);"
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_names_with_and_without_prefix() -> None:
    assert check_sample("sample:chatterbot") is check_sample("chatterbot", "dataset")


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("chaterbot", None, "Did you mean 'chatterbot'?"),
        ("smollm2", "model", "Did you mean 'smollm2-135m-instruct'?"),
        ("chatterbot", "model", "is a dataset, not a model"),
        ("gsm8k-train", "dataset", "gsm8k-test"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest(name: str, kind: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        check_sample(name, kind)  # type: ignore[arg-type]
    assert caught.value.exit_code == 2


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDLOOM_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    asset = SAMPLES["chatterbot"]
    assert sample_folder(asset) == tmp_path / "samples" / f"chatterbot-{asset.digest[:8]}"
    monkeypatch.delenv("FEDLOOM_CACHE")
    assert cache_root().parts[-2:] == (".cache", "fedloom")
