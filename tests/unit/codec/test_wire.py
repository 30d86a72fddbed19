"""The wire: what is encoded comes back, sizes are exact, and everything else is refused."""

import json
import struct
import tracemalloc

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.codec.tensors import DTYPES
from fedloom.codec.wire import (
    MAX_HEADER,
    VERSION,
    Broadcast,
    Seeds,
    Update,
    decode,
    encode,
    encoded_size,
    read_header,
    size_limit,
)
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


def declared(tensors):
    return {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}


@pytest.mark.parametrize("n", [1, 10, 1000, 123457])
@pytest.mark.parametrize("loss", [0.5, 1 / 3, 1e-12])
def test_size_is_exact(n, loss):
    tensors = {"delta": torch.randn(n)}
    header = update(train_loss=loss)
    assert encoded_size(header, tensors) == len(encode(header, tensors)) <= size_limit(declared(tensors))


def test_size_needs_no_numbers():
    tensors = {"delta": torch.randn(7), "mask": torch.ones(3, dtype=torch.uint8)}
    shapes = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    assert encoded_size(update(), shapes) == len(encode(update(), tensors))


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_round_trip_is_bit_exact(kind):
    delta = torch.randn(N)
    header, tensors = decode(kind(encode(update(), {"delta": delta})), Update, EXPECTED)
    assert header == update() and torch.equal(tensors["delta"], delta)


NAMES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)
TENSORS = st.dictionaries(NAMES, st.tuples(st.sampled_from(list(DTYPES)), SHAPES), max_size=5)


@given(TENSORS, st.integers(0, 2**31))
def test_any_tensors_come_back_and_are_what_safetensors_writes(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: (torch.randn(shape, generator=generator) * 9).to(dtype) for name, (dtype, shape) in shapes.items()}
    message = encode(update(), tensors)
    _, start = read_header(message, Update)
    assert message[start:] == safetensors.torch.save(tensors)
    theirs = safetensors.torch.load(message[start:])
    for content in (message, bytearray(message)):
        _, ours = decode(content, Update, shapes)
        assert ours.keys() == theirs.keys() == tensors.keys()
        assert all(torch.equal(ours[name], tensors[name]) and ours[name].dtype == tensors[name].dtype for name in ours)


def test_tensors_that_are_no_one_piece_of_memory():
    whole = torch.arange(12.0).reshape(3, 4)
    message = encode(update(), {"delta": whole.t()[1], "c": whole.t().requires_grad_()})
    _, found = decode(message, Update, {"delta": (torch.float32, (3,)), "c": (torch.float32, (4, 3))})
    assert torch.equal(found["delta"], whole[:, 1]) and torch.equal(found["c"], whole.t())


def test_a_bytearray_is_not_copied_and_bytes_are_never_written_to():
    message = encode(update(), {"delta": torch.zeros(N)})
    own = bytearray(message)
    for content, shared in ((own, True), (message, False), (memoryview(own).toreadonly(), False)):
        _, tensors = decode(content, Update, EXPECTED)
        before = bytes(content)
        tensors["delta"].add_(1.0)
        assert (bytes(content) != before) == shared
        own[:] = message


def test_what_lies_askew_in_memory_is_copied():
    """Vector instructions of some machines fault on a float that is not at a multiple of its width."""
    message = encode(update(), {"delta": torch.arange(float(N))})
    room = bytearray(len(message) + 1)
    room[1:] = message
    _, tensors = decode(memoryview(room)[1:], Update, EXPECTED)
    assert tensors["delta"].data_ptr() % 4 == 0 and torch.equal(tensors["delta"], torch.arange(float(N)))


def test_decoding_takes_one_copy_of_bytes_and_nothing_of_a_bytearray():
    n = 1 << 20
    message = encode(update(), {"delta": torch.ones(n)})
    for content, most in ((message, len(message) + 65536), (bytearray(message), 65536)):
        tracemalloc.start()
        tensors = decode(content, Update, {"delta": (torch.float32, (n,))})[1]
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert taken < most and tensors["delta"].sum() == n


def forged(text: bytes, tensors: bytes, version: int = VERSION, magic: bytes = b"fedloom", fill: bool = True) -> bytes:
    text += b" " * (-(12 + len(text)) % 8 if fill else 0)
    return magic + struct.pack("<BI", version, len(text)) + text + tensors


def described(text: bytes, numbers: bytes = bytes(4 * N)) -> bytes:
    text += b" " * (-len(text) % 8)
    return forged(GOOD, struct.pack("<Q", len(text)) + text + numbers)


def changed(**changes) -> bytes:
    own = json.loads(GOOD) | changes
    return forged(json.dumps({k: v for k, v in own.items() if v is not ...}).encode(), BODY)


def literal(field: bytes, value: bytes) -> bytes:
    old = json.dumps(json.loads(GOOD)[field.decode()], ensure_ascii=False).encode()
    text = GOOD.replace(b'"%s":%s' % (field, old), b'"%s":%s' % (field, value))
    assert text != GOOD
    return forged(text, BODY)


GOOD = update().model_dump_json().encode()
BODY = safetensors.torch.save({"delta": torch.zeros(N)})
REAL = encode(update(), {"delta": torch.zeros(N)})
TENSOR = b'"delta":{"dtype":"F32","shape":[10],"data_offsets":[0,40]}'
REFUSED = {
    "empty": (b"", "it has 0 bytes"),
    "shorter than its front": (REAL[:11], "it has 11 bytes"),
    "nothing but a front": (REAL[:12], "its header claims"),
    "of no such format": (forged(GOOD, BODY, magic=b"fedlook"), "it begins with b'fedlook'"),
    "of the format before versions": (struct.pack("<I", len(GOOD)) + GOOD + BODY, "it begins with"),
    "of a version to come": (forged(GOOD, BODY, version=VERSION + 1), "stale version: it is of version 2 of the wire format"),
    "of version 0": (forged(GOOD, BODY, version=0), "stale version: it is of version 0"),
    "header longer than the message": (b"fedloom\1" + struct.pack("<I", 1004) + b"{}", "its header claims 1004"),
    "header of 4 GiB": (b"fedloom\1" + struct.pack("<I", (1 << 32) - 4) + b"{}", "its header claims 4294967292"),
    "header of more than is allowed": (
        forged(GOOD + b" " * (MAX_HEADER + 4 - len(GOOD)), BODY)[: size_limit(EXPECTED)], "its header claims 4100"),
    "header without filling": (forged(GOOD + b" " * ((1 - 12 - len(GOOD)) % 8), BODY, fill=False), "its header claims"),
    "not JSON": (forged(b"{]", BODY), "its header is not valid"),
    "two objects": (forged(GOOD + GOOD, BODY), "its header is not valid"),
    "a list": (forged(b"[1]", BODY), "its header is not valid: it is no object"),
    "a number": (forged(b"1", BODY), "its header is not valid: it is no object"),
    "nothing but filling": (forged(b"", BODY), "its header is not valid"),
    "nested deep": (forged(b"[" * 4000, BODY), "its header is not valid"),
    "nested deep in a field": (literal(b"client", b"[" * 1900 + b"]" * 1900), "its header is not valid"),
    "nested": (changed(client={"a": 1}), "'client': Input should be a valid string"),
    "not UTF-8": (literal(b"client", b'"\xff"'), "its header is not valid: 'utf-8' codec"),
    "UTF-16": (forged(GOOD.decode().encode("utf-16"), BODY), "its header is not valid"),
    "byte order mark": (forged(b"\xef\xbb\xbf" + GOOD, BODY), "its header is not valid"),
    "half a surrogate pair": (literal(b"client", b'"\\ud800"'), "its header is not valid: 'utf-8' codec can't encode"),
    "control character": (literal(b"client", b'"\n"'), "its header is not valid"),
    "a key twice": (forged(GOOD[:-1] + b',"weight":1e9}', BODY), "its header is not valid: a key comes twice"),
    "unknown key": (changed(code="x"), "its header has no field 'code'"),
    "missing key": (forged(b'{"layout":"abc","round":1,"kind":"update"}', BODY), "'client': Field required"),
    "no kind": (changed(kind=...), "its header says no 'kind'"),
    "another kind": (encode(Broadcast(layout="abc", round=1), {"delta": torch.zeros(N)}), "'client': Field required"),
    "another kind with all fields": (changed(kind="broadcast"), "'kind': Input should be 'update'"),
    "infinite weight": (literal(b"weight", b"Infinity"), "its header is not valid: Infinity is not JSON"),
    "NaN": (literal(b"train_loss", b"NaN"), "its header is not valid: NaN is not JSON"),
    "overflowing loss": (literal(b"train_loss", b"1e999"), "'train_loss': Input should be a finite number"),
    "overflowing integer for a loss": (literal(b"train_loss", b"1" + b"0" * 400), "'train_loss': "),
    "negative weight": (changed(weight=-1.0), "'weight': Input should be greater than or equal to 0"),
    "negative count": (changed(steps=-1), "'steps': Input should be greater than or equal to 0"),
    "count beyond a double": (changed(tokens=2**53), "'tokens': Input should be less than"),
    "count of 3500 digits": (literal(b"tokens", b"9" * 3500), "'tokens': "),
    "an object that does not end": (forged(GOOD[:-1] + b" " * 8, BODY), "its header is not valid"),
    "fraction for a count": (changed(steps=1.0), "'steps': Input should be a valid integer"),
    "truth for a count": (changed(steps=True), "'steps': Input should be a valid integer"),
    "text for a number": (changed(weight="2.0"), "'weight': Input should be a valid number"),
    "null": (changed(train_loss=None), "'train_loss': Input should be a valid number"),
    "long layout": (changed(layout="a" * 65), "'layout': String should have at most 64 characters"),
    "another name": (encode(update(), {"w": torch.zeros(N)}), "its tensors are b'{\"w\""),
    "another shape": (encode(update(), {"delta": torch.zeros(N - 1)}), "its tensors are"),
    "another rank": (encode(update(), {"delta": torch.zeros(1, N)}), "its tensors are"),
    "another type of the same width": (encode(update(), {"delta": torch.zeros(N, dtype=torch.int32)}), "its tensors are"),
    "another type": (encode(update(), {"delta": torch.zeros(N, dtype=torch.float64)}), "its tensors are"),
    "one tensor more": (encode(update(), {"delta": torch.zeros(N), "extra": torch.zeros(1)}), "its tensors are"),
    "one empty tensor more": (encode(update(), {"delta": torch.zeros(N), "extra": torch.zeros(0)}), "its tensors are"),
    "no tensor": (encode(update(), {}), "its tensors are"),
    "a tensor twice": (described(b"{" + TENSOR + b"," + TENSOR + b"}"), "its tensors are"),
    "metadata": (described(b'{"__metadata__":{"a":"b"},' + TENSOR + b"}"), "its tensors are"),
    "a gap": (described(b"{" + TENSOR.replace(b"[0,40]", b"[8,48]") + b"}", bytes(48)), "its tensors are"),
    "offsets out of range": (described(b"{" + TENSOR.replace(b"[0,40]", b"[0,80]") + b"}"), "its tensors are"),
    "offsets backwards": (described(b"{" + TENSOR.replace(b"[0,40]", b"[40,0]") + b"}"), "its tensors are"),
    "another filling": (described(b"{" + TENSOR + b"}\n"), "its tensors are"),
    "a description that nests": (described(b'{"delta":' + b"[" * 100), "its tensors are"),
    "a description of 2^64 bytes": (forged(GOOD, b"\xff" * 8 + BODY[8:]), "its tensors are"),
    "a number that is NaN": (encode(update(), {"delta": torch.full((N,), torch.nan)}), "tensor 'delta' holds"),
    "a number that is infinite": (encode(update(), {"delta": torch.full((N,), -torch.inf)}), "tensor 'delta' holds"),
    "too long": (REAL + bytes(3 << 20), "at most"),
    "a byte more": (REAL + b"\0", "its tensors take"),
    "cut": (REAL[:-5], "its tensors take"),
    "cut in the description": (REAL[: len(REAL) - 4 * N - 3], "its tensors are"),
    "cut where the tensors begin": (REAL[: len(REAL) - len(BODY)], "its tensors are"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    message, why = REFUSED[case]
    for kind in (bytes, bytearray):
        with pytest.raises(FedloomError, match="a message was refused") as raised:
            decode(kind(message), Update, EXPECTED)
        assert why in raised.value.why and len(str(raised.value)) < 1000


def test_a_stale_version_says_what_to_do():
    with pytest.raises(FedloomError) as raised:
        read_header(forged(GOOD, BODY, version=9), Update)
    assert "version 9" in raised.value.why and f"this side's is {VERSION}" in raised.value.why
    assert raised.value.fix == "Run the same version of fedloom on both sides"


@settings(max_examples=30)
@given(st.integers(0, 199), st.sampled_from([torch.nan, torch.inf, -torch.inf]),
       st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))  # fmt: skip
def test_one_number_that_is_not_finite_is_found(place, value, dtype):
    delta = torch.randn(200).to(dtype)
    expected = {"delta": (dtype, (200,))}
    decode(encode(update(), {"delta": delta}), Update, expected)
    delta[place] = value
    with pytest.raises(FedloomError, match="not finite"):
        decode(encode(update(), {"delta": delta}), Update, expected)


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_random_bytes_are_refused_with_a_reason(content):
    for front in (b"", REAL[:8], REAL[:12], REAL[: len(REAL) - len(BODY)]):
        with pytest.raises(FedloomError, match="a message was refused"):
            decode(front + content, Update, EXPECTED)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(list(Update.model_fields)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3))))  # fmt: skip
def test_any_json_for_a_field_is_refused_or_comes_back_the_same(fields):
    message = forged(json.dumps(json.loads(GOOD) | fields).encode(), BODY)
    try:
        header, _ = decode(message, Update, EXPECTED)
    except FedloomError as error:
        assert error.what == "a message was refused"
    else:
        assert json.loads(header.model_dump_json()) == json.loads(GOOD) | fields


@pytest.mark.parametrize(
    ("header", "tensors", "why"),
    [
        (update(client="x" * MAX_HEADER), {}, "its header has"),
        (update(), {"delta": torch.zeros(1, dtype=torch.complex64)}, "of type torch.complex64"),
        (update(), {"delta": torch.zeros(1, dtype=torch.bool)}, "of type torch.bool"),
        (update(), {'a"b': torch.zeros(1)}, "no name for a tensor"),
        (update(), {"": torch.zeros(1)}, "no name for a tensor"),
        (update(), {"é": torch.zeros(1)}, "no name for a tensor"),
        (update(), {"a" * 257: torch.zeros(1)}, "no name for a tensor"),
        (update(), {"__metadata__": torch.zeros(1)}, "no name for a tensor"),
    ],
)
def test_what_no_reader_would_take_is_not_written(header, tensors, why):
    for write in (encode, encoded_size):
        with pytest.raises(FedloomError, match="a message cannot be made") as raised:
            write(header, tensors)
        assert why in raised.value.why and raised.value.fix


@pytest.mark.parametrize(
    "changes", [{"code": "x"}, {"weight": float("nan")}, {"train_loss": float("inf")}, {"steps": -1}, {"steps": 1.0}]
)
def test_headers_that_cannot_be_are_not_made(changes):
    with pytest.raises(ValueError, match="validation error"):
        update(**changes)


def test_seeds_and_broadcasts_come_back():
    own = Seeds(**update().model_dump(exclude={"kind"}), directions=2)
    message = encode(own, {"derivatives": torch.ones(2)})
    assert decode(message, Seeds, {"derivatives": (torch.float32, (2,))})[0] == own
    with pytest.raises(FedloomError, match="a message was refused"):
        decode(message, Update, {"derivatives": (torch.float32, (2,))})
    start = Broadcast(layout="abc", round=1)
    assert decode(encode(start, {"w": torch.ones(2)}), Broadcast, {"w": (torch.float32, (2,))})[0] == start
