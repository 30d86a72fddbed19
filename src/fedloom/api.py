"""What `import fedloom` offers: load an experiment, run it, resume it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedloom import algorithms, selection, tasks
from fedloom.config.layers import AllLayers
from fedloom.config.load import dump
from fedloom.config.load import load as load_config
from fedloom.config.schema import Experiment
from fedloom.data.samples import check_sample
from fedloom.errors import FedloomError, UsageError

if TYPE_CHECKING:
    from fedloom.engines.remote.link import ServerLink
    from fedloom.local.prepare import Prepared
    from fedloom.local.store import ClientStore
    from fedloom.tracking.checkpoint import Progress
    from fedloom.tracking.rundir import RunDir

__all__ = ["Listener", "OpenedRun", "Run", "load", "load_run", "open_run", "prepare", "resume", "run"]

Listener = Callable[[str, dict[str, Any]], None]
"""Told of every round's record: listener(name of the run, or of the yardstick; the record)."""


@dataclass(frozen=True)
class Run:
    """A run as it ended: its folder, whether it is complete, and its manifest."""

    path: Path
    finished: bool
    manifest: dict[str, Any]


def load(path: str | Path, overrides: Sequence[str] = (), *, base: Path | None = None) -> Experiment:
    """Read an experiment file, with overrides `key.sub=value`.

    Relative paths and `module:attribute` names start from `base`, the file's own folder when left out. No weights are read and
    no tensor library is imported. Raises ConfigError with every mistake at once.
    """
    base = base or Path(path).resolve().parent
    return load_config(
        path,
        overrides,
        algorithm=lambda name: algorithms.resolve(name, base),
        selector=lambda name: selection.resolve(name, base),
        clash=algorithms.clash,
        task=lambda name: tasks.describe(name, base),
        sample=check_sample,
        base=base,
    )


def prepare(experiment: Experiment) -> Prepared:
    """The experiment with its model, data and partition loaded."""
    from fedloom.engines.worker import prepare as prepare_here

    if experiment.engine.kind == "remote":
        what = "the clients of `engine: remote` are asked by the federation's coordinator"
        raise UsageError(
            what, where="engine", fix="start it with `fedloom serve`, and give it the experiment with `fedloom run`"
        )
    return prepare_here(experiment)


def _prepare(experiment: Experiment, run_dir: RunDir, link: ServerLink | None) -> Prepared:
    """The same for a run directory; with a link, the clients are asked what they hold, those that the run began with."""
    if experiment.engine.kind != "remote" or link is None:
        return prepare(experiment)
    from secrets import token_hex

    from fedloom.engines.remote.standin import prepare_remote

    known = run_dir.manifest().get("remote")
    if known is None:  # written before anyone is asked: who was asked and then resumes is known by the same name
        known = {"run": f"{experiment.name[:40].replace('.', '-')}-{token_hex(6)}", "clients": None}
        run_dir.update_manifest(remote=known)
    prepared = prepare_remote(experiment, link, known["run"], list(known["clients"] or link.clients))
    run_dir.update_manifest(remote=prepared.record)
    return prepared


def run(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    listeners: Sequence[Listener] = (),
    stop_asked: Callable[[], bool] = lambda: False,
    link: ServerLink | None = None,
) -> Run:
    """Run an experiment in a new folder `out/NAME`, then its yardsticks in `out/NAME/yardsticks/`.

    link: the coordinator's end of what carries its messages, for `engine: remote`. Raises FedloomError for everything a user can
    mend; what was saved by then can be resumed.
    """
    from fedloom.tracking.manifest import first_manifest
    from fedloom.tracking.rundir import RunDir

    run_dir = RunDir.create(Path(out).resolve() / experiment.name, dump(experiment), first_manifest(experiment))
    return _drive(experiment, run_dir, listeners, stop_asked, link)


def resume(
    path: str | Path,
    *,
    listeners: Sequence[Listener] = (),
    stop_asked: Callable[[], bool] = lambda: False,
    link: ServerLink | None = None,
) -> Run:
    """Go on with a run that was stopped or killed; a complete run is left as it is.

    Raises RunError when the folder holds no run, another process uses it, or the data or the model have changed since.
    """
    from fedloom.tracking.rundir import RunDir

    run_dir = RunDir.open(Path(path).resolve())
    manifest = run_dir.manifest()
    if manifest["status"] == "finished":
        run_dir.close()
        return Run(run_dir.path, True, manifest)
    return _drive(load_run(run_dir.path), run_dir, listeners, stop_asked, link)


@dataclass(frozen=True)
class OpenedRun:
    """A run's checkpoint, with everything needed to use it."""

    path: Path
    prepared: Prepared
    progress: Progress
    store: ClientStore


def load_run(path: str | Path) -> Experiment:
    """The experiment of a run directory.

    Raises RunError when there is none.
    """
    from fedloom.tracking.rundir import read_manifest

    return load(Path(path) / "config.yaml", base=Path(read_manifest(Path(path))["base"]))


def open_run(path: str | Path, round: int | None = None) -> OpenedRun:
    """The model of a run as its newest checkpoint, or that of a round, holds it; the run may still be going on.

    Raises RunError when data, model or adapter are no longer those of the run, CheckpointError when there is no such checkpoint.
    """
    from fedloom.aggregation.factors import residuals
    from fedloom.local.store import ClientStore
    from fedloom.tracking.checkpoint import CheckpointFolder
    from fedloom.tracking.manifest import check_same, describe_prepared
    from fedloom.tracking.rundir import read_manifest

    path = Path(path).resolve()
    experiment = load_run(path)
    checkpoints = CheckpointFolder(path / "checkpoints", experiment.checkpoints)
    progress = checkpoints.load(checkpoints.newest() if round is None else round)
    remote = read_manifest(path).get("remote")
    if remote is None:
        prepared = prepare(experiment)
    else:
        from fedloom.engines.remote.standin import prepare_again

        prepared = prepare_again(experiment, remote)
    check_same(read_manifest(path), describe_prepared(prepared), path)
    prepared.binding.fold(residuals(progress.server))
    return OpenedRun(path, prepared, progress, ClientStore(path / "clients"))


def _drive(
    experiment: Experiment,
    run_dir: RunDir,
    listeners: Sequence[Listener],
    stop_asked: Callable[[], bool],
    link: ServerLink | None,
) -> Run:
    """The federation, then its yardsticks on the same model and data, then what comes out."""
    from fedloom.tracking.results import write_pages

    try:
        prepared = _prepare(experiment, run_dir, link)
        finished = _federate(prepared, run_dir, experiment.name, listeners, stop_asked, link)
        for name in experiment.federation.yardsticks:
            finished = finished and _yardstick(prepared, run_dir, name, listeners, stop_asked)
        run_dir.update_manifest(status="finished" if finished else "stopped")
        write_pages(run_dir.path, experiment.model.path)
        return Run(run_dir.path, finished, run_dir.manifest())
    except FedloomError as error:
        with suppress(FedloomError):  # on a full disk the failure cannot be written down either
            run_dir.event(run_dir.manifest()["rounds_done"], "failure", str(error))
            run_dir.update_manifest(status="failed", failure=str(error))
            write_pages(run_dir.path, experiment.model.path)
        raise
    except KeyboardInterrupt:
        with suppress(FedloomError):
            run_dir.update_manifest(status="stopped")
        raise
    finally:
        run_dir.close()


def _federate(
    prepared: Prepared,
    run_dir: RunDir,
    name: str,
    listeners: Sequence[Listener],
    stop_asked: Callable[[], bool],
    link: ServerLink | None = None,
) -> bool:
    """One federation in its folder, with its curves, its partition and, when it is complete, its adapter."""
    from fedloom.federation import Federation
    from fedloom.tracking.curves import Curves
    from fedloom.tracking.manifest import check_same, describe_prepared, outcome
    from fedloom.tracking.results import write_adapter, write_partition

    check_same(run_dir.manifest(), describe_prepared(prepared), run_dir.path)
    run_dir.update_manifest(**describe_prepared(prepared))
    write_partition(prepared, run_dir.path)
    told: list[Callable[[dict[str, Any]], None]] = [lambda record, tell=tell: tell(name, record) for tell in listeners]  # type: ignore[misc]
    curves = Curves(run_dir.path / "tensorboard") if prepared.experiment.tensorboard else None
    federation = Federation(prepared, run_dir, [*told, *([curves] if curves else [])], stop_asked, link)
    sizing = federation.engine.sizing
    run_dir.update_manifest(grouping=sizing.how, group_size=sizing.group_size)
    finished = False
    try:
        finished = federation.run()
    finally:
        federation.engine.close(finished)
        if curves:
            curves.close()
    run_dir.update_manifest(**outcome(run_dir.path, federation.progress))
    if finished and (prepared.algorithm.federated or prepared.algorithm.pooled):
        run_dir.update_manifest(**write_adapter(prepared, federation.progress, run_dir.path))
    if finished:
        run_dir.event(federation.progress.round, "finish", f"finished after {federation.progress.round} rounds")
    return finished


def _yardstick(
    prepared: Prepared, run_dir: RunDir, name: str, listeners: Sequence[Listener], stop_asked: Callable[[], bool]
) -> bool:
    """The same experiment under a yardstick, in a run folder of its own; one that is already complete is left alone."""
    from fedloom.tracking.manifest import first_manifest
    from fedloom.tracking.rundir import RunDir

    algorithm = algorithms.resolve(name, prepared.experiment.base)()
    own: dict[str, Any] = {"yardsticks": [], "selection": {"name": "uniform"}, "wait": None}
    if (
        prepared.algorithm.asynchronous
    ):  # a yardstick waits for its cohort, which is as many clients as one version is made of
        own |= {"arrivals": None, "clients_per_round": prepared.algorithm.awaits()}
    federation = prepared.experiment.federation.model_copy(update=own)
    changes = {
        "name": f"{prepared.experiment.name}-{name}",
        "algorithm": {"name": name},
        "federation": federation,
        "layers": AllLayers(),
        "devices": None,
    }
    experiment = prepared.experiment.model_copy(update=changes)
    path = run_dir.path / "yardsticks" / name
    if path.exists():
        inner = RunDir.open(path)
    else:
        inner = RunDir.create(path, dump(experiment), first_manifest(experiment), numbered=False)
    try:
        if inner.manifest()["status"] == "finished":
            return True
        variant = replace(prepared, experiment=experiment).with_algorithm(algorithm)
        finished = _federate(variant, inner, name, listeners, stop_asked)
        inner.update_manifest(status="finished" if finished else "stopped")
        return finished
    finally:
        inner.close()
