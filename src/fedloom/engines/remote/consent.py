"""What a client agrees to do: its owner's word against an experiment, before anything that it names is loaded."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from fedloom.config.reference import is_reference
from fedloom.config.schema import Experiment
from fedloom.config.site import Accept
from fedloom.errors import FedloomError

__all__ = ["Refused", "check_base", "check_code", "check_cohort", "check_experiment", "check_run", "check_steps"]

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Refused(FedloomError):
    """The client's owner has not agreed to this."""


def check_run(run: str) -> None:
    """A run's name becomes that of a folder."""
    if not _RUN.fullmatch(run):
        raise Refused(f"{run[:80]!r} is no name of a run")


def check_code(text: str, accept: Accept) -> None:
    """Refuse code that an experiment names: nothing is imported that the owner has not allowed by its name.

    An experiment is the coordinator's text, and `module:attribute` in it would call whatever is installed here.
    """
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except (YAMLError, RecursionError, ValueError) as error:
        raise Refused("the experiment cannot be read", why=" ".join(str(error).split())[:300]) from error
    for key, name in _named(data if isinstance(data, dict) else {}):
        if isinstance(name, str) and is_reference(name) and name not in accept.code:
            fix = f"Its owner can allow it: accept: {{code: [{name}]}}"
            raise Refused(f"{name!r} is code that this client does not run", where=key, fix=fix)


def check_experiment(experiment: Experiment, accept: Accept) -> None:
    """Refuse tasks and lengths that the owner has not agreed to."""
    task, rounds = experiment.model.task, experiment.federation.rounds
    if accept.tasks is not None and task not in accept.tasks:
        raise Refused(f"this client does not take part in the task {task!r}", where="model.task")
    if accept.max_rounds is not None and rounds > accept.max_rounds:
        raise Refused(f"{rounds} rounds are more than this client's {accept.max_rounds}", where="federation.rounds")


def check_base(fingerprint: str, accept: Accept) -> None:
    """Refuse a base model that the owner has not agreed to."""
    if accept.base_models is not None and fingerprint not in accept.base_models:
        raise Refused(f"this client does not train on the base model {fingerprint}", where="model.path")


def check_steps(steps: int, accept: Accept) -> None:
    """Refuse more local steps than the owner has agreed to."""
    if accept.max_steps is not None and steps > accept.max_steps:
        raise Refused(f"{steps} steps a round are more than this client's {accept.max_steps}", where="local")


def check_cohort(cohort: int, accept: Accept) -> None:
    """Refuse a round of too few clients. It is the coordinator's word that there are so many."""
    if cohort < accept.min_cohort:
        raise Refused(f"{cohort} clients a round are fewer than the {accept.min_cohort} this client takes part among")


def _named(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every place of an experiment at which code can be named."""
    model, algorithm, federation = (data.get(key) for key in ("model", "algorithm", "federation"))
    for key in ("path", "task"):
        yield f"model.{key}", model.get(key) if isinstance(model, dict) else None
    methods = [algorithm]
    if isinstance(algorithm, dict):
        others = algorithm.get("with", [])
        methods += others if isinstance(others, list) else [others]
    for method in methods:
        yield "algorithm", method.get("name") if isinstance(method, dict) else method
    weighting = federation.get("weighting") if isinstance(federation, dict) else None
    for name in (weighting, weighting.get("function") if isinstance(weighting, dict) else None):
        yield "federation.weighting", name
    source = data.get("data")
    yield "data.source", source.get("source") if isinstance(source, dict) else None
