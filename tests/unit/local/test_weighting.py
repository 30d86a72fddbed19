"""What a client's update weighs, of every kind; and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy

from fedloom.config.schema import Federation, Local
from fedloom.data.partition import Partition
from fedloom.errors import DataError, FedloomError, UsageError
from fedloom.local.weighting import check_weights, client_weight

# Three clients hold rows 0-1, 2-6 and 7-9; the rows' episodes are those of `CODES`, -1 for none.
TRAIN = Partition(["a", "b", "c"], np.array([0, 2, 7, 10]), np.arange(10))
LENGTHS = np.array([3, 4, 1, 1, 1, 1, 1, 10, 20, 30])
CODES = np.array([0, 0, 1, 2, 1, -1, 3, -1, -1, -1], dtype=np.int32)


def prepared(weighting, base=None, **local):
    def codes(column):
        assert column == "episode"
        return CODES, ["p", "q", "r", "s"]

    experiment = SimpleNamespace(
        federation=Federation(rounds=1, weighting=weighting), local=Local(**local or {"steps": 5}), base=base
    )
    table = SimpleNamespace(lengths=LENGTHS, codes=codes)
    return SimpleNamespace(experiment=experiment, table=table, train=TRAIN, step_scale=1, seen=np.arange(3))


def weights(*args, **local):
    made = prepared(*args, **local)
    return [client_weight(made, k) for k in range(3)]


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("samples", [2, 5, 3]),
        ("tokens", [7, 5, 60]),
        ("steps", [5, 5, 5]),
        ("uniform", [1, 1, 1]),
        # a: one episode; b: episodes 1, 2 and 3, and a row that belongs to none; c: no episode at all
        ({"kind": "adapted", "column": "episode"}, [2 + 7, 5 + 7 * 3, 3]),
        ({"kind": "adapted", "column": "episode", "mu": 0.5}, [2.5, 6.5, 3]),
        ({"kind": "adapted", "column": "episode", "mu": 0.0}, [2, 5, 3]),
    ],
)
def test_by_hand(weighting, expected):
    assert weights(weighting) == expected
    check_weights(prepared(weighting))


def test_steps_are_those_that_a_client_takes():
    """One pass in batches of 2: 1, 3 and 2 steps; pooled clients take as many steps as a cohort."""
    assert weights("steps", epochs=1, batch_size=2) == [1, 3, 2]
    made = prepared("steps")
    made.step_scale = 4
    assert client_weight(made, 0) == 20


def test_episodes():
    made = prepared({"kind": "episodes", "column": "episode"})
    assert [client_weight(made, k) for k in (0, 1)] == [1, 3]
    with pytest.raises(DataError, match=r"client 'c' would weigh nothing.*None of its 3 rows"):
        client_weight(made, 2)
    with pytest.raises(DataError, match="client 'c'"):
        check_weights(made)
    made.seen = np.array([0, 1])  # a client that never trains needs no weight
    check_weights(made)


def test_a_function_of_the_users(tmp_path):
    (tmp_path / "my_weights.py").write_text(
        "def by_name(client, rows, tokens):\n    return ord(client) + rows / tokens\n"
    )
    assert weights("my_weights:by_name", tmp_path) == [97 + 2 / 7, 98 + 1, 99 + 3 / 60]
    assert weights({"kind": "function", "function": "my_weights:by_name"}, tmp_path)[1] == 99
    check_weights(prepared("my_weights:by_name", tmp_path))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 0", "gives client 'a' the weight 0.*finite number above 0"),
        ("return -1.5", "the weight -1.5"),
        ("return float('nan')", "the weight nan"),
        ("return float('inf')", "the weight inf"),
        ("return '3'", "the weight '3'"),
        ("return True", "the weight True"),
        ("return None", "the weight None"),
        ("return {}[client]", r"fails for client 'a': KeyError: 'a' \(bad_weights.py, line 2\)"),
    ],
)
def test_a_function_that_gives_no_weight(body, words, tmp_path):
    (tmp_path / "bad_weights.py").write_text(f"def weigh(client, rows, tokens):\n    {body}\n")
    with pytest.raises(UsageError, match=words) as caught:
        check_weights(prepared("bad_weights:weigh", tmp_path))
    assert caught.value.where == "federation.weighting"


def test_what_is_not_there(tmp_path):
    (tmp_path / "no_weights.py").write_text("weigh = 3\n")
    for reference, words in (("no_weights:weight", "no attribute"), ("no_weights:weigh", "is no function")):
        with pytest.raises(FedloomError, match=words):
            check_weights(prepared(reference, tmp_path))


def test_weights_move_the_mean(tmp_path):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, one step of lr 0.1 from 0 gives 0.1 and 0.3: 0.2 alike, 0.25 with 1 and 3 rows."""
    for weighting, w in (("uniform", 0.2), ("samples", 0.25), ("steps", 0.2)):
        made = toy.quadratic([[1.0], [3.0]], rows=[1, 3], federation={"weighting": weighting})
        torch.testing.assert_close(toy.vectors(made, tmp_path, 1), torch.tensor([w]))
