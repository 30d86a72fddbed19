"""SCAFFOLD: control variates."""

import torch
import toy

from fedloom.selection.pool import uniform

SPEC = {"name": "scaffold"}
LOCAL = {"steps": 2}


def control(federation, rounds):
    """The clients' c_k, `[N, n]`; zero for one that was never selected."""
    own = [federation.store.load(name, rounds + 1) for name in federation.prepared.train.clients]
    zero = torch.zeros_like(federation.progress.w)
    return torch.stack([zero if state is None else state["scaffold.c"] for state in own])


def hand(folder):
    """f_0 = 1/2 (w - 1)^2, f_1 = 2/2 (w - 4)^2, from 0, lr 0.1, two steps, both clients (on 1 and 3 rows: they count alike).

    Round 1, all c are 0.  w_0: 0 -> 0.1 -> 0.19;  w_1: 0 -> 0.8 -> 1.44;  w = 0.815.
      II: c_0 = (0 - 0.19) / 0.2 = -0.95, c_1 = -1.44 / 0.2 = -7.2, c = -4.075.
      I:  c_0 = f_0'(0) = -1, c_1 = f_1'(0) = -8, c = -4.5.
    Round 2, II: directions (w - 1) + 0.95 - 4.075 = w - 4.125 and 2 (w - 4) + 7.2 - 4.075 = 2 w - 4.875.
      w_0: 0.815 -> 1.146 -> 1.4439;  w_1: 0.815 -> 1.1395 -> 1.3991;  w = 1.4215.
      c_0 = -0.95 + 4.075 + (0.815 - 1.4439) / 0.2 = -0.0195, c_1 = -7.2 + 4.075 - 2.9205 = -6.0455, c = -3.0325.
    Round 2, I: directions w - 4.5 and 2 w - 4.5.
      w_0: 0.815 -> 1.1835 -> 1.51515;  w_1: 0.815 -> 1.102 -> 1.3316;  w = 1.423375.
      c_0 = 0.815 - 1 = -0.185, c_1 = 2 (0.815 - 4) = -6.37, c = -3.2775.
    """
    expected = {"II": (1.4215, (-0.0195, -6.0455), -3.0325), "I": (1.423375, (-0.185, -6.37), -3.2775)}
    for option, (w, own, c) in expected.items():
        spec = {"name": "scaffold", "option": option}
        made = toy.quadratic([[1.0], [4.0]], spec, curvature=[1.0, 2.0], rows=[1, 3], local=LOCAL)
        made = toy.federate(made, folder, 2)
        torch.testing.assert_close(made.progress.w, torch.tensor([w]))
        torch.testing.assert_close(control(made, 2), torch.tensor(own).unsqueeze(1))
        torch.testing.assert_close(made.progress.server["scaffold.c"], torch.tensor([c]))
    part_of_the_clients(folder)


def part_of_the_clients(folder):
    """One of two: w moves all of its way, c half of its change: from 0, client 0 gives (0.19, -0.475), client 1 (1.44, -3.6)."""
    made = toy.quadratic([[1.0], [4.0]], SPEC, curvature=[1.0, 2.0], local=LOCAL, federation={"clients_per_round": 1})
    made = toy.federate(made, folder, 1)
    w, c = {0: (0.19, -0.475), 1: (1.44, -3.6)}[int(uniform(2, 1, seed=0, round=1)[0])]
    torch.testing.assert_close(made.progress.w, torch.tensor([w]))
    torch.testing.assert_close(made.progress.server["scaffold.c"], torch.tensor([c]))


def identity(folder):
    """While all c are zero, and with one step of all clients, whose corrections then add up to nothing, it is FedAvg."""
    for option in ("I", "II"):
        spec = {"name": "scaffold", "option": option}
        for rounds, steps in ((1, 3), (3, 1)):
            a, b = (toy.vectors(toy.factors(s, local={"steps": steps}), folder, rounds) for s in (spec, "fedavg"))
            torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


def property(folder):
    """It ends at the minimum of the mean loss, sum_k h_k c_k / sum_k h_k = 0.8, whatever the local steps.

    FedAvg ends elsewhere: with w_k = c_k + (1 - lr h_k)^K (w - c_k), at sum_k a_k c_k / sum_k a_k for a_k = 1 - (1 - lr h_k)^K,
    that is at 0.597886 for h = 1 and 4, c = 0 and 1, lr 0.2 and K = 5. With a part of the clients, c stays the mean of all c_k.
    """
    toys = {"curvature": [1.0, 4.0], "local": {"lr": 0.2, "steps": 5}}
    drifted = toy.vectors(toy.quadratic([[0.0], [1.0]], "fedavg", **toys), folder, 12)
    torch.testing.assert_close(drifted, torch.tensor([0.597886]))
    for option in ("I", "II"):
        spec = {"name": "scaffold", "option": option}
        corrected = toy.vectors(toy.quadratic([[0.0], [1.0]], spec, **toys), folder, 25)
        torch.testing.assert_close(corrected, torch.tensor([0.8]), rtol=0, atol=1e-5)
        made = toy.factors(spec, local={"steps": 3}, federation={"clients_per_round": 2})
        made = toy.federate(made, folder, 4)
        torch.testing.assert_close(made.progress.server["scaffold.c"], control(made, 4).mean(0), rtol=0, atol=1e-6)
