"""What the processes of a drill need, imported once by the server that forks them."""

# ruff: noqa: F401 (to be there when a process is forked)

import datasets
import drill_parties
import matplotlib.pyplot
import peft
import transformers

import fedloom.algorithms.fedavg
import fedloom.cli.join
import fedloom.cli.serve
import fedloom.deployment.coordinator
import fedloom.deployment.service
import fedloom.engines.local
import fedloom.engines.remote.engine
import fedloom.engines.remote.standin
import fedloom.federation
import fedloom.tasks.causal_lm
import fedloom.tracking.export
import fedloom.tracking.report.page
