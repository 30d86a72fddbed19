"""Many runs compared: planned from one file, each run in a process of its own."""

from __future__ import annotations

from fedloom.sweep.plan import Plan, PlannedRun, load_plan
from fedloom.sweep.runner import Runner, State, jobs_that_fit

__all__ = ["Plan", "PlannedRun", "Runner", "State", "jobs_that_fit", "load_plan"]
