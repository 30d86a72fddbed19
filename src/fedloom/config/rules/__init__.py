"""Pairs of options that cannot be, checked before any weight is read.

A rule names the keys it reads; it is passed over when one of them is wrong already, so that a mistake is reported once.
"""

from __future__ import annotations

from fedloom.config.rules import data, evaluation, places, training  # noqa: F401  (what they hold are rules)
from fedloom.config.rules.adapter import mixed_ranks
from fedloom.config.rules.devices import selection_fit
from fedloom.config.rules.estimates import seeds_alone
from fedloom.config.rules.layers import layer_choice
from fedloom.config.rules.remote import remote_fit
from fedloom.config.rules.rule import RULES, Facts, Finding, SampleInfo, TaskInfo
from fedloom.config.rules.training import counts_alike
from fedloom.config.rules.unused import UNUSED, is_given, unused
from fedloom.config.schema import Experiment

__all__ = [
    "Facts",
    "SampleInfo",
    "TaskInfo",
    "check",
    "counts_alike",
    "layer_choice",
    "mixed_ranks",
    "remote_fit",
    "seeds_alone",
    "selection_fit",
    "unused",
]


def check(experiment: Experiment, facts: Facts) -> list[Finding]:
    """Every mistake that the rules find, and every option that is given and plays no part."""
    findings = [
        Finding(row.key, row.why.format(e=experiment), row.fix)
        for row in UNUSED
        if _usable((row.key, *row.reads), facts) and is_given(experiment, row.key) and row.applies(experiment)
    ]
    for reads, function in RULES:
        if _usable(reads, facts):
            findings += function(experiment, facts)
    return findings


def _usable(reads: tuple[str, ...], facts: Facts) -> bool:
    keys = [tuple(key.split(".")) for key in reads]
    return not any(w[: len(p)] == p or p[: len(w)] == w for p in keys for w in facts.faulty)
