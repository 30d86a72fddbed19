"""How groups are sized: fill the products, pad little, stay within memory."""

from types import SimpleNamespace

import numpy as np
import pytest

from fedloom.algorithms import Algorithm, build
from fedloom.config.schema import Federation, Local, LocalEngine
from fedloom.data.partition import Partition
from fedloom.engines.sizing import make_groups, size_groups
from fedloom.errors import ModelError


def prepared(lengths, *, clients=12, n=1000, ungroupable=None, engine=None, algorithm=None, **local):
    """Clients with as many rows of each length; only what sizing reads."""
    rows = 10
    table = SimpleNamespace(lengths=np.repeat(np.resize(np.asarray(lengths), clients), rows))
    train = Partition([f"c{k}" for k in range(clients)], np.arange(clients + 1) * rows, np.arange(clients * rows))
    experiment = SimpleNamespace(
        local=Local(**({"steps": 2} | local)), engine=engine or LocalEngine(), federation=Federation(rounds=1)
    )
    layout = SimpleNamespace(n=n)
    binding = SimpleNamespace(device=SimpleNamespace(type="cpu"), ungroupable=ungroupable, layout=layout)
    return SimpleNamespace(
        experiment=experiment,
        table=table,
        train=train,
        binding=binding,
        step_scale=1,
        algorithm=algorithm or Algorithm(),
    )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (prepared([16], batch_size=1), (12, True)),
        (prepared([16], batch_size=4), (8, True)),
        (prepared([64], batch_size=8), (12, False)),
        (prepared([100] + [8] * 11, batch_size=1), (12, False)),
        (prepared([16], batch_size=1, grouping="in_place"), (12, False)),
        (prepared([64], batch_size=8, grouping="grouped"), (1, True)),
        (prepared([16], batch_size=1, n=1 << 24), (4, True)),
        (prepared([64], batch_size=8, n=1 << 27), (1, False)),
        (prepared([16], batch_size=1, ungroupable="an Embedding"), (12, False)),
        (prepared([16], batch_size=1, engine=LocalEngine(group_size=5)), (5, True)),
    ],
)
def test_sizes(case, expected):
    sizing = size_groups(case)
    assert (min(sizing.group_size, 12), sizing.grouped) == expected


def test_forced_grouping_says_why_it_cannot():
    with pytest.raises(ModelError, match="an Embedding"):
        size_groups(prepared([16], batch_size=1, ungroupable="an Embedding", grouping="grouped"))


def test_groups_are_no_larger_than_what_an_asynchronous_server_waits_for():
    for awaits, expected in ((3, (3, True)), (1, (16, False))):
        algorithm = build({"name": "fedbuff", "buffer": awaits}, None)
        sizing = size_groups(prepared([16], batch_size=1, algorithm=algorithm))
        assert (sizing.group_size, sizing.grouped) == expected


def test_groups_hold_clients_of_like_lengths():
    case = prepared([30, 5, 30, 5], clients=4)
    assert make_groups(case, range(4), 2) == [[0, 2], [1, 3]]
