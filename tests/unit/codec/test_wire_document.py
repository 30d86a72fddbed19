"""`docs/wire.md` is true: a reader written from it alone agrees with ours on every message, and its tables are the code's."""

import importlib.util
import json
import math
import random
import re
import struct
from pathlib import Path

import pytest
import torch

from fedloom.codec import tensors, wire
from fedloom.codec.wire import Broadcast, Seeds, Update, decode, encode
from fedloom.errors import FedloomError

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "wire.md").read_text()


def fuzzer():
    spec = importlib.util.spec_from_file_location("fuzz_wire", ROOT / "benchmarks" / "fuzz_wire.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZ = fuzzer()


def part(title):
    return re.search(rf"^##+ {title}\n(.*?)(?=^##|\Z)", TEXT, re.S | re.M).group(1)


def table(title):
    """The rows of the first table of a part, without its head."""
    rows = [line for line in part(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def fence(title, language):
    return re.search(rf"^```{language}\n(.*?)^```$", part(title), re.S | re.M).group(1)


class Refused(Exception):
    """By the twin."""


def need(fact):
    if not fact:
        raise Refused


WIDTHS = {name: int(width) for name, width, _ in table("Tensors")}
FIELDS = {kind: {name: what for name, what, *_ in table(kind)} for kind in ("broadcast", "update", "seeds")}
FLOATS = {"F64": "d", "F32": "f", "F16": "e"}


def once(pairs):
    need(len(dict(pairs)) == len(pairs))
    return dict(pairs)


def constant(_):
    raise Refused


def twin(message, kind, due, layout):
    """A reader written from the document: the header, and the raw bytes of each tensor; `due` has types and shapes by name."""
    order = sorted(due, key=lambda name: (list(WIDTHS).index(due[name][0]), name.encode()))
    entries, end = [], 0
    for name in order:
        begin, end = end, end + math.prod(due[name][1]) * WIDTHS[due[name][0]]
        shape = ",".join(map(str, due[name][1]))
        entries.append(
            (
                name,
                begin,
                end,
                f'"{name}":{{"dtype":"{due[name][0]}","shape":[{shape}],"data_offsets":[{begin},{end}]}}',
            )
        )
    text = "{" + ",".join(e[3] for e in entries) + "}"
    text += " " * (-len(text) % 8)
    numbers = end
    need(12 <= len(message) <= 12 + 4096 + 8 + len(text) + numbers)
    need(message[:7] == b"fedloom" and message[7] == 1)
    (h,) = struct.unpack("<I", message[8:12])
    need(h <= 4096 and 12 + h <= len(message) and (12 + h) % 8 == 0)
    header = read(message[12 : 12 + h], FIELDS[kind], kind)
    need(header["layout"] == layout)
    d = len(text)
    need(message[12 + h : 20 + h + d] == struct.pack("<Q", d) + text.encode())
    rest = message[20 + h + d :]
    need(len(rest) == numbers)
    found = {}
    for name, begin, end, _ in entries:
        found[name] = rest[begin:end]
        check_finite(rest[begin:end], due[name][0])
    return header, found


def read(content, fields, kind):
    try:
        header = json.loads(content.decode("utf-8"), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError):
        raise Refused from None
    need(isinstance(header, dict) and header.keys() == fields.keys() and header["kind"] == kind)
    for name, what in fields.items():
        value = header[name]
        if what == "text":
            need(isinstance(value, str) and not re.search("[\ud800-\udfff]", value))
        elif what == "count":
            need(type(value) is int and 0 <= value <= 9007199254740991)
        else:
            need(type(value) in (int, float) and abs(value) < 2**1024 - 2**970 and math.isfinite(value))
            header[name] = float(value)
    need(len(header["layout"]) <= 64 and header.get("weight", 0) >= 0)
    return header


def check_finite(content, name):
    if name == "BF16":
        content, name = b"".join(b"\0\0" + content[i : i + 2] for i in range(0, len(content), 2)), "F32"
    if name in FLOATS:
        count = len(content) // struct.calcsize(FLOATS[name])
        need(all(map(math.isfinite, struct.unpack(f"<{count}{FLOATS[name]}", content))))


def raw(tensor):
    return bytes(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def verdicts(case, frame):
    """What ours and the twin make of a frame: None where it is refused."""
    kind = case.kind.model_fields["kind"].default
    due = {name: (tensors.DTYPES[dtype], shape) for name, (dtype, shape) in case.expected.items()}
    try:
        header, own = decode(frame, case.kind, case.expected, FUZZ.LAYOUT)
        ours = (header.model_dump(), {name: raw(t) for name, t in own.items()})
    except FedloomError:
        ours = None
    try:
        theirs = twin(bytes(frame), kind, due, FUZZ.LAYOUT)
    except Refused:
        theirs = None
    return ours, theirs


def test_the_example_is_read_as_the_document_says():
    message = bytes.fromhex(fence("Example", "hex"))
    says = json.loads(fence("Example", "json"))
    delta = json.loads(re.search(r"`delta` is `(\[.*?\])`", part("Example")).group(1))
    sizes = re.search(r"An `update` of (\d+) bytes .* H = (\d+), D = (\d+), S = (\d+)", part("Example")).groups()
    header, found = decode(message, Update, {"delta": (torch.float32, (len(delta),))}, says["layout"])
    assert json.loads(header.model_dump_json()) == says and found["delta"].tolist() == delta
    assert encode(Update(**says), {"delta": torch.tensor(delta)}) == message
    h, d = struct.unpack("<I", message[8:12])[0], struct.unpack("<Q", message[224:232])[0]
    assert tuple(map(int, sizes)) == (len(message), h, d, 4 * len(delta))
    twin_header, twin_found = twin(message, "update", {"delta": ("F32", [len(delta)])}, says["layout"])
    assert twin_header == says and struct.unpack("<3f", twin_found["delta"]) == tuple(delta)


@pytest.mark.parametrize("kind", [Broadcast, Update, Seeds])
def test_every_field_is_in_its_table_and_no_other(kind):
    types = {str: "text", int: "count", float: "number"}
    own = {name: types.get(field.annotation, "text") for name, field in kind.model_fields.items()}
    assert FIELDS[kind.model_fields["kind"].default] == own


def test_there_are_no_other_kinds_types_or_limits():
    kinds = set()
    for own in vars(wire).values():
        if isinstance(own, type) and issubclass(own, wire.Header) and "kind" in own.model_fields:
            kinds.add(own.model_fields["kind"].default)
    assert kinds == set(FIELDS) == {re.sub("`", "", row) for row in re.findall(r"^### (\w+)$", TEXT, re.M)}
    assert [(name, int(width)) for name, width, _ in table("Tensors")] == [
        (n, t.itemsize) for t, n in tensors.DTYPES.items()
    ]
    assert f"version {wire.VERSION}" in TEXT.splitlines()[0] and f"at most {wire.MAX_HEADER}" in TEXT


def test_the_twin_agrees_on_what_is_broken():
    """On 6,000 frames: refused by both, or read by both as the same."""
    rng, cases, read_by_both = random.Random(5), FUZZ.cases(), 0
    for number in range(6000):
        case, mutate = rng.choice(cases), FUZZ.MUTATIONS[number % len(FUZZ.MUTATIONS)]
        frame = mutate(case, rng, cases)
        ours, theirs = verdicts(case, frame)
        assert ours == theirs, (mutate.__name__, frame)
        read_by_both += ours is not None
    assert 300 < read_by_both < 2000


def test_twenty_thousand_broken_frames():
    """The million of `benchmarks/fuzz_wire.py`, in part: FedloomError or the message, and memory within its bound."""
    found = FUZZ.fuzz(20_000, seed=2)
    assert sum(found.outcomes.values()) == 20_000 and found.most <= FUZZ.ALLOWED
    outcomes = {outcome for _, outcome in found.outcomes}
    assert outcomes == {"returned", *FUZZ.REASONS}, "a way to refuse that no mutation reaches"


def test_the_fuzzer_sees_what_a_decoder_does_wrong(monkeypatch):
    case, frame = FUZZ.cases()[0], FUZZ.cases()[0].content
    monkeypatch.setattr(FUZZ, "decode", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) as raised:
        FUZZ._outcome(frame, case)
    assert "frame: b'fedloom" in raised.value.__notes__[0]
    monkeypatch.setattr(FUZZ, "decode", lambda data, kind, *_: (bytearray(200 << 10), decode(data, kind, *_))[1])
    with pytest.raises(AssertionError, match="bytes beside the frame"):
        FUZZ.fuzz(1)
    other = Broadcast(layout=FUZZ.LAYOUT, round=1), {"w": torch.zeros(40)}
    monkeypatch.setattr(FUZZ, "decode", lambda *_: other)
    with pytest.raises(AssertionError):
        FUZZ._outcome(frame, case)
