"""The experiment file: typed, strict, explained."""

from __future__ import annotations

from fedloom.config.explain import explain, json_schema
from fedloom.config.load import dump, load
from fedloom.config.reference import is_reference, load_attribute
from fedloom.config.rules import SampleInfo, TaskInfo
from fedloom.config.schema import Experiment

__all__ = [
    "Experiment",
    "SampleInfo",
    "TaskInfo",
    "dump",
    "explain",
    "is_reference",
    "json_schema",
    "load",
    "load_attribute",
]
