"""FedAvg: the weighted mean of what the clients learnt."""

from dataclasses import replace

import numpy as np
import torch
import toy

from fedloom.data.partition import Partition

SPEC = None


def hand(folder):
    """f_k = 1/2 (w - c_k)^2, c = 1 and 3, from 0, lr 0.1, two steps, weights 1 and 3 (rows).

    w_0: 0 -> 0.1 -> 0.1 + 0.1 * 0.9 = 0.19;  w_1: 0 -> 0.3 -> 0.3 + 0.1 * 2.7 = 0.57;  w = (0.19 + 3 * 0.57) / 4 = 0.475.
    """
    made = toy.quadratic([[1.0], [3.0]], "fedavg", rows=[1, 3], local={"steps": 2})
    torch.testing.assert_close(toy.vectors(made, folder, 1), torch.tensor([0.475]))


def identity(folder):
    """With one step on all rows and weights by samples, it is a step on all clients' rows pooled: one client that holds them."""
    made = toy.factors("fedavg")
    pooled = Partition(["all"], np.array([0, len(made.table)]), np.arange(len(made.table)))
    one = replace(made, train=pooled, validation=pooled)
    a, b = toy.vectors(made, folder, 3), toy.vectors(one, folder, 3)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """With h_k, K steps and lr, w_k = c_k + (1 - lr h_k)^K (w - c_k): the server ends at sum_k a_k c_k / sum_k a_k.

    a_k = 1 - (1 - lr h_k)^K; h = 1 and 4, lr 0.2, K = 5: a = 0.67232 and 1 - 0.2^5 = 0.99968. With c = 0 and 1 the end is 0.597886,
    which is not the minimum of the mean loss, at sum_k h_k c_k / sum_k h_k = 0.8.
    """
    made = toy.quadratic([[0.0], [1.0]], "fedavg", curvature=[1.0, 4.0], local={"lr": 0.2, "steps": 5})
    torch.testing.assert_close(toy.vectors(made, folder, 12), torch.tensor([0.99968 / (0.67232 + 0.99968)]))
