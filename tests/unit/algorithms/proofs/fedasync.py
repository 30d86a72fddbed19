"""FedAsync: mixing by hand for each staleness function; equal to FedAvg over one client when all of its model is taken."""

import torch
import toy

SPEC = {"name": "fedasync"}
CONSTANT = {"arrivals": {"kind": "constant"}}


def _both(folder, spec, **sections):
    made = toy.quadratic([[4.0], [-2.0]], SPEC | spec, federation=CONSTANT, **sections)
    return [toy.vectors(made, folder, rounds).item() for rounds in (1, 2)]


def hand(folder):
    """Two clients that take one second each: both start from x0 = 0 and arrive together, so the second is one version late.

    One local step: x_0 = 0.1 * 4 = 0.4 and x_1 = 0.1 * -2 = -0.2 (where it starts, the proximal term is zero).
        x1 = (1 - 0.6) * 0 + 0.6 * 0.4 = 0.24
    Then with alpha_2 = 0.6 s(1):
        constant            0.6:                  x2 = 0.4 * 0.24 + 0.6 * -0.2                = -0.024
        polynomial, a 1/2   0.6 * 2^-1/2 = 0.424264:  x2 = 0.575736 * 0.24 + 0.424264 * -0.2  =  0.0533238
        hinge, a 10, b 4    0.6 (1 <= 4):         as constant                                 = -0.024
        hinge, a 10, b 0    0.6 / 11 = 0.0545455: x2 = 0.9454545 * 0.24 + 0.0545455 * -0.2    =  0.216
    Two local steps with rho = 2: x <- x - 0.1 (x - c + 2 (x - 0)): client 0: 0.4, then 0.4 - 0.1 (0.4 - 4 + 0.8) = 0.68.
        x1 = 0.6 * 0.68 = 0.408
    """
    expected = {
        "constant": ({"staleness": "constant"}, -0.024),
        "polynomial": ({}, 0.0533238),
        "hinge, in time": ({"staleness": "hinge", "a": 10.0, "b": 4}, -0.024),
        "hinge, late": ({"staleness": "hinge", "a": 10.0, "b": 0}, 0.216),
    }
    for spec, second in expected.values():
        torch.testing.assert_close(_both(folder, spec), [0.24, second], rtol=0, atol=1e-6)
    torch.testing.assert_close(_both(folder, {"rho": 2.0}, local={"steps": 2})[0], 0.408, rtol=0, atol=1e-6)


def identity(folder):
    """One client at a time, all of whose model is taken: FedAvg with a cohort of one."""
    one = {"clients_per_round": 1}
    spec = SPEC | {"alpha": 1.0, "rho": 0.0}
    local = {"steps": 3, "batch_size": 4}
    own = toy.vectors(toy.factors(spec, local=local, federation=one), folder, 5)
    plain = toy.vectors(toy.factors("fedavg", local=local, federation=one), folder, 5)
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-7)


def property(folder):
    """Models are mixed: with alpha 1 and no discount the server holds exactly the model that came last, however late."""
    spec = {"alpha": 1.0, "staleness": "constant"}
    torch.testing.assert_close(_both(folder, spec), [0.4, -0.2], rtol=0, atol=1e-6)
