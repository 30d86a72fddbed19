"""FedBuff: buffers and staleness by hand; equal to FedAvg when nobody is late."""

import torch
import toy

SPEC = {"name": "fedbuff", "buffer": 2}
CONSTANT = {"arrivals": {"kind": "constant"}, "weighting": "uniform"}


def hand(folder):
    """Three clients that take one second each, and a buffer of two.

    Local steps: w - 0.1 (w - c_k), so Delta_k = 0.1 (c_k - w). At 1 s all three arrive, started from w0 = 0:
        clients 0 and 1 fill the buffer:   w1 = 0 + (0.1 * 1 + 0.1 * 3) / 2 = 0.2
        client 2 waits in the next one; 0 and 1 start again from w1.
    At 2 s clients 0 and 1 arrive; 0 fills the buffer. Client 2's update is one version late, so it counts 2^-1/2:
        w2 = 0.2 + (2^-1/2 * 0.1 * 8 + 0.1 * (1 - 0.2)) / 2 = 0.2 + (0.565685 + 0.08) / 2 = 0.522843
    With a server step of 2 and no discount:
        w1 = 0.4,   w2 = 0.4 + 2 (0.8 + 0.1 * (1 - 0.4)) / 2 = 1.26
    With weights 1, 3, 2 (rows) the mean is over p_k, discounted or not:
        w1 = (1 * 0.1 + 3 * 0.3) / 4 = 0.25
        w2 = 0.25 + (2 * 2^-1/2 * 0.8 + 1 * 0.1 * (1 - 0.25)) / 3 = 0.25 + (1.131371 + 0.075) / 3 = 0.652124
    """
    centres = [[1.0], [3.0], [8.0]]
    made = toy.quadratic(centres, SPEC, federation=CONSTANT)
    w = [toy.vectors(made, folder, rounds).item() for rounds in (1, 2)]
    torch.testing.assert_close(w, [0.2, 0.522843], rtol=0, atol=1e-6)
    made = toy.quadratic(centres, SPEC | {"lr": 2.0, "exponent": 0.0}, federation=CONSTANT)
    w = [toy.vectors(made, folder, rounds).item() for rounds in (1, 2)]
    torch.testing.assert_close(w, [0.4, 1.26], rtol=0, atol=1e-6)
    made = toy.quadratic(centres, SPEC, rows=[1, 3, 2], federation=CONSTANT | {"weighting": "samples"})
    w = [toy.vectors(made, folder, rounds).item() for rounds in (1, 2)]
    torch.testing.assert_close(w, [0.25, 0.652124], rtol=0, atol=1e-6)


def identity(folder):
    """Nobody is late when all under way arrive together and fill the buffer: FedAvg bit for bit, cohorts and batches included."""
    changes = {"local": {"steps": 3, "batch_size": 4}, "federation": {"clients_per_round": 3}}
    late = changes | {"federation": changes["federation"] | {"arrivals": {"kind": "constant", "seconds": 7.0}}}
    spec = SPEC | {"buffer": 3}
    own = toy.vectors(toy.factors(spec, clients=6, **late), folder, 4)
    plain = toy.vectors(toy.factors("fedavg", clients=6, **changes), folder, 4)
    assert torch.equal(own, plain)
    whole = {"arrivals": {"kind": "constant"}}
    own = toy.vectors(toy.factors(SPEC | {"buffer": 4}, federation=whole), folder, 3)
    assert torch.equal(own, toy.vectors(toy.factors("fedavg"), folder, 3))


def property(folder):
    """Differences are averaged, not models: a late client that has learnt nothing leaves w where it is.

    Client 2 starts at its optimum, w0 = 0, so its late update is zero. Averaging the late model would pull w2 towards 0:
    w1 = 0.2 and client 0's update is 0.1 (2 - 0.2) = 0.18, so w2 = 0.2 + (0 + 0.18) / 2 = 0.29, whatever the discount.
    """
    for exponent in (0.0, 0.5, 3.0):
        made = toy.quadratic([[2.0], [2.0], [0.0]], SPEC | {"exponent": exponent}, federation=CONSTANT)
        torch.testing.assert_close(toy.vectors(made, folder, 2).item(), 0.29, rtol=0, atol=1e-6)
