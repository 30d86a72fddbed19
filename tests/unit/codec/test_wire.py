"""The wire: what is encoded comes back, sizes are exact, and everything else is refused."""

import struct

import pytest
import safetensors.torch
import torch

from fedloom.codec.wire import Broadcast, Update, decode, encode, encoded_size
from fedloom.errors import FedloomError

N = 10
EXPECTED = {"delta": (torch.float32, (N,))}


def update(**changes):
    facts = {
        "layout": "abc",
        "round": 3,
        "client": "Łódź-1",
        "weight": 2.0,
        "samples": 4,
        "tokens": 9,
        "steps": 1,
        "train_loss": 0.5,
    }
    return Update(**(facts | changes))


@pytest.mark.parametrize("n", [1, 10, 1000, 123457])
@pytest.mark.parametrize("loss", [0.5, 1 / 3, 1e-12])
def test_size_is_exact(n, loss):
    tensors = {"delta": torch.randn(n)}
    header = update(train_loss=loss)
    assert encoded_size(header, tensors) == len(encode(header, tensors))


def test_round_trip_is_bit_exact():
    delta = torch.randn(N)
    header, tensors = decode(encode(update(), {"delta": delta}), Update, EXPECTED)
    assert header == update() and torch.equal(tensors["delta"], delta)


def forged(text: bytes, tensors: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text + tensors


GOOD = update().model_dump_json().encode()
BODY = safetensors.torch.save({"delta": torch.zeros(N)})
REFUSED = {
    "empty": b"",
    "header longer than the message": struct.pack("<I", 10_000) + b"{}",
    "not JSON": forged(b"{]", BODY),
    "unknown key": forged(GOOD[:-1] + b',"code":"x"}', BODY),
    "missing key": forged(b'{"layout":"abc","round":1}', BODY),
    "another kind": encode(Broadcast(layout="abc", round=1), {"delta": torch.zeros(N)}),
    "infinite weight": forged(GOOD.replace(b'"weight":2.0', b'"weight":Infinity'), BODY),
    "another name": encode(update(), {"w": torch.zeros(N)}),
    "another shape": encode(update(), {"delta": torch.zeros(N - 1)}),
    "another type": encode(update(), {"delta": torch.zeros(N, dtype=torch.float64)}),
    "one tensor more": encode(update(), {"delta": torch.zeros(N), "extra": torch.zeros(1)}),
    "NaN": encode(update(), {"delta": torch.full((N,), torch.nan)}),
    "Inf": encode(update(), {"delta": torch.full((N,), torch.inf)}),
    "too long": encode(update(), {"delta": torch.zeros(N)}) + bytes(3 << 20),
    "cut": encode(update(), {"delta": torch.zeros(N)})[:-5],
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with pytest.raises(FedloomError, match="a message was refused"):
        decode(REFUSED[case], Update, EXPECTED)
