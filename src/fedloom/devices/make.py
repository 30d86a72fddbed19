"""The devices of an experiment's clients."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedloom.config.devices import AlikeDevices, Devices, FileDevices
from fedloom.devices.files import read_devices
from fedloom.devices.generate import generate
from fedloom.devices.population import Population, alike
from fedloom.errors import DataError
from fedloom.vector.streams import stream

__all__ = ["devices_digest", "make_population"]


def make_population(settings: Devices, sizes: NDArray[np.int64], *, seed: int, base: Path) -> Population:
    """A device for each client, of which there are as many as `sizes`, `[N]`: the rows each holds.

    Devices of a file are dealt out at random, each once, or as often as any other. Raises DataError for a file that cannot be read
    or holds too few.
    """
    if isinstance(settings, AlikeDevices):
        speeds = settings.model_dump(include={"ms_per_sample", "down_kbps", "up_kbps", "cost"})
        return alike(len(sizes), **speeds)
    if not isinstance(settings, FileDevices):
        return generate(
            len(sizes), seed=seed, sizes=sizes, correlation=settings.correlation, days=settings.days,
            online=not settings.always_online, cost=settings.cost,
        )  # fmt: skip
    path = _path(settings, base)
    found = read_devices(path, settings.cost)
    if len(found) < len(sizes) and not settings.reuse:
        what = f"it holds {len(found)} devices, and there are {len(sizes)} clients"
        raise DataError(what, where=str(path), fix="set devices.reuse: true to deal them out more than once")
    order = stream(seed, "devices", "dealt").permutation(len(found))
    return found.take(order[np.arange(len(sizes)) % len(found)])


def devices_digest(settings: Devices | None, base: Path) -> str | None:
    """SHA-256 of the file of devices, where they come from one; what else they are follows from the settings and the seed."""
    if not isinstance(settings, FileDevices):
        return None
    path = _path(settings, base)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"the file of devices cannot be read: {error.strerror}", where=str(path)) from error


def _path(settings: FileDevices, base: Path) -> Path:
    return base / Path(settings.path).expanduser()
