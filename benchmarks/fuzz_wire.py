"""A million broken messages through the decoder: each is returned or refused, and none takes more memory than declared.

Real messages of every kind, mutated (bits, cuts, splices, lies about lengths, hostile headers and descriptions, numbers that are
not finite), and random bytes. Fails at the first frame that raises anything but FedloomError, comes back changed, or takes more
than its own length and a constant; prints outcomes and frames a second.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import struct
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import psutil
import torch

from fedloom.codec.tensors import Declared
from fedloom.codec.wire import Broadcast, Header, Seeds, Update, decode, encode, size_limit
from fedloom.errors import FedloomError

ALLOWED = 128 << 10
"""Bytes beside one copy of the frame: what a header of 4096 bytes can make of itself, as Python objects, and the error's text."""
ADDRESS_SPACE = 512 << 20
"""Bytes by which the process may grow in all; an allocation beyond fails."""

FRONT, LAYOUT = 12, "5f" * 32


class Case(NamedTuple):
    """A real message, and what its reader expects."""

    content: bytes
    kind: type[Header]
    expected: Declared

    @property
    def start(self) -> int:
        """Where the tensors begin."""
        return FRONT + int.from_bytes(self.content[8:12], "little")

    @property
    def body(self) -> int:
        """Where the numbers begin."""
        return self.start + 8 + int.from_bytes(self.content[self.start : self.start + 8], "little")


def cases() -> list[Case]:
    """Messages of every kind, with tensors of every type that algorithms send, some of them empty."""
    generator = torch.Generator().manual_seed(0)
    facts = {
        "round": 7,
        "client": "klinika Łódź",
        "weight": 12.5,
        "samples": 24,
        "tokens": 4100,
        "steps": 3,
        "train_loss": 0.6931,
    }
    vectors = {name: torch.randn(40, generator=generator) for name in ("a", "b", "c")}
    mask = torch.ones(5, dtype=torch.uint8)
    others = {
        "wide": torch.arange(3),
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "none": torch.zeros(0, 4),
        "one": torch.ones(()),
    }
    made = [
        (Broadcast(layout=LAYOUT, round=7), {"w": vectors["a"]}),
        (Broadcast(layout=LAYOUT, round=7), {"w": vectors["a"], "scaffold.c": vectors["b"], "layers.chosen": mask, **others}),
        (Update(layout=LAYOUT, **facts), {"delta": vectors["a"]}),
        (Update(layout=LAYOUT, **facts), {"delta": vectors["a"], "scaffold.c": vectors["c"], "fair.h": vectors["b"][:1]}),
        (Seeds(layout=LAYOUT, directions=40, **facts), {"derivatives": vectors["b"]}),
    ]  # fmt: skip
    return [
        Case(encode(header, tensors), type(header), {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()})
        for header, tensors in made
    ]


def flip(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """One to eight bits."""
    own = bytearray(case.content)
    for _ in range(rng.randint(1, 8)):
        own[rng.randrange(len(own))] ^= 1 << rng.randrange(8)
    return bytes(own)


def cut(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """Truncated, or longer."""
    own, at = case.content, rng.randrange(len(case.content))
    return rng.choice(
        [own[:at], own[at:], own + rng.randbytes(rng.randint(1, 64)), own[:at] + own[at + rng.randint(1, 9) :]]
    )


def splice(case: Case, rng: random.Random, others: list[Case]) -> bytes:
    """The front of one and the rest of another, at places of their own or where their parts begin."""
    other = rng.choice(others)
    if rng.random() < 0.5:
        a, b = rng.choice([(case.start, other.start), (case.body, other.body), (FRONT, FRONT)])
    else:
        a, b = rng.randrange(len(case.content)), rng.randrange(len(other.content))
    return case.content[:a] + other.content[b:]


def lie(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """About a length, or the version."""
    own = bytearray(case.content)
    value = rng.choice(
        [0, 1, 7, 8, 4096, 4097, 1 << 20, (1 << 31) - 1, (1 << 32) - 1, rng.getrandbits(rng.randint(1, 32))]
    )
    place = rng.randrange(4)
    if place == 0:
        own[7] = rng.randrange(256)
    elif place == 1:
        struct.pack_into("<I", own, 8, value)
    elif place == 2:
        struct.pack_into("<I", own, 8, min(case.start - FRONT + rng.choice([-16, -8, -1, 1, 8, 16]), (1 << 32) - 1))
    else:
        struct.pack_into("<Q", own, case.start, rng.choice([value, value << 32, (1 << 64) - 1]))
    return bytes(own)


HOSTILE = [
    "NaN", "Infinity", "-Infinity", "1e999", "-1", "-0", "0.0", "1e3", "true", "null", '""', "[]", "{}", "9" * 30, "9" * 400,
    "9" * 5000, "9007199254740991", "9007199254740992", "1" + "0" * 308, "1" + "0" * 310 + ".0", '"\\ud800"', '"\\u0000"',
    "[" * 2000, '{"a":' * 700, "[" + "[]," * 1000 + "[]]", "[" + '{"":1},' * 400 + "0]",
    "[" + '{"a":1},' * 400 + "0]", '{"' + '":{},"'.join(map(str, range(300))) + '":{}}',
    '"' + "x" * 3500 + '"', "\ufeff", '"\u202e\x7f"', "1_0", "0x10", "01", "+1", ".5", "1.", "/**/1", '"\t"',
]  # fmt: skip
VALUE = re.compile(r'(?<=:)("[^"]*"|[^,{}"\[\]]+|\[[^\]]*\])')


def hostile(text: str, rng: random.Random) -> str:
    """JSON with one value, one key or one piece of it changed."""
    way = rng.randrange(5)
    if way < 2:
        found = rng.choice(list(VALUE.finditer(text)))
        return text[: found.start()] + rng.choice(HOSTILE) + text[found.end() :]
    if way == 2:  # a member more, perhaps of a name that is there
        members = [
            f'"{key}":{rng.choice(HOSTILE)}'
            for key in rng.choices(["layout", "kind", "w", "delta", "x"], k=rng.randint(1, 3))
        ]
        return text[:-1] + "," + ",".join(members) + "}"
    if way == 3:  # a member less, or twice
        members = text[1:-1].split(",")
        at = rng.randrange(len(members))
        return "{" + ",".join(members[:at] + members[at : at + 1] * rng.choice([0, 2]) + members[at + 1 :]) + "}"
    return rng.choice(HOSTILE) if rng.random() < 0.2 else text.replace(rng.choice(text), rng.choice([*HOSTILE, " "]))


def header(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """Hostile, behind a front that is true."""
    text = hostile(case.content[FRONT : case.start].decode().rstrip(), rng).encode(
        rng.choice(["utf-8"] * 8 + ["utf-16", "utf-32"])
    )
    text += b" " * (-(FRONT + len(text)) % 8)
    return case.content[:8] + struct.pack("<I", len(text)) + text + case.content[case.start :]


def description(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """Hostile, with a length that is true."""
    text = hostile(case.content[case.start + 8 : case.body].decode().rstrip(), rng).encode()
    text += b" " * (-len(text) % 8)
    return case.content[: case.start] + struct.pack("<Q", len(text)) + text + case.content[case.body :]


def offsets(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """A description with other integers: out of range, overlapping, negative."""
    text = case.content[case.start + 8 : case.body].decode().rstrip()
    found = rng.choice(list(re.finditer(r"(?<=[\[,])\d+", text)))
    value = rng.choice([int(found.group()) + rng.choice([-1, 1, 4, 8]), rng.getrandbits(rng.randint(1, 70))])
    text = text[: found.start()] + str(value) + text[found.end() :]
    own = (text + " " * (-len(text) % 8)).encode()
    return case.content[: case.start] + struct.pack("<Q", len(own)) + own + case.content[case.body :]


def numbers(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """Other numbers, some of them not finite."""
    own = bytearray(case.content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(case.body, len(own) - 3)
        at -= (at - case.body) % 4
        own[at : at + 4] = struct.pack(
            "<f", rng.choice([float("nan"), float("inf"), float("-inf"), 3e38, 1e-45, rng.gauss(0, 1)])
        )
    return bytes(own[: len(case.content)])


def spaced(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """The same header as another writer might write it: valid."""
    found = list(json.loads(case.content[FRONT : case.start]).items())
    rng.shuffle(found)
    text = json.dumps(dict(found), indent=rng.choice([None, 0, 2]), ensure_ascii=rng.random() < 0.5).encode()
    text += b" " * (-(FRONT + len(text)) % 8)
    return case.content[:8] + struct.pack("<I", len(text)) + text + case.content[case.start :]


def noise(case: Case, rng: random.Random, _: list[Case]) -> bytes:
    """Random bytes, behind nothing or behind parts that are true."""
    return case.content[: rng.choice([0, 7, 8, FRONT, case.start, case.body])] + rng.randbytes(rng.randint(0, 400))


MUTATIONS: list[Callable[[Case, random.Random, list[Case]], bytes]] = [
    flip, cut, splice, lie, header, description, offsets, numbers, spaced, noise,
]  # fmt: skip


class Found(NamedTuple):
    """What a run came to."""

    outcomes: Counter[tuple[str, str]]
    """By mutation, and by what became of the frame."""
    most: int
    """Bytes that the decoder held at most beside one copy of the frame."""
    seconds: float


def fuzz(frames: int, seed: int = 0) -> Found:
    """Decode so many frames.

    Raises AssertionError where one takes more memory than declared or comes back as another message than it was, and whatever
    the decoder raises that is no FedloomError; a note has the frame.
    """
    rng, known, outcomes, most = random.Random(seed), cases(), Counter[tuple[str, str]](), 0
    for case in known:
        assert len(case.content) <= size_limit(case.expected)
        decode(case.content, case.kind, case.expected, LAYOUT)  # what is made once, for good
    tracemalloc.start()
    began = time.perf_counter()
    try:
        for number in range(frames):
            case, mutation = rng.choice(known), MUTATIONS[number % len(MUTATIONS)]
            frame = mutation(case, rng, known)
            if number % 3 == 0:
                frame = bytearray(frame)
            reader = rng.choice(known) if number % 16 == 0 else case
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            outcome = _outcome(frame, reader)
            beside = tracemalloc.get_traced_memory()[1] - before - len(frame)
            most = max(most, beside)
            assert beside <= ALLOWED, f"{mutation.__name__}: {beside:,} bytes beside the frame: {bytes(frame)!r}"
            outcomes[mutation.__name__, outcome] += 1
    finally:
        tracemalloc.stop()
    return Found(outcomes, most, time.perf_counter() - began)


def _outcome(frame: bytes | bytearray, case: Case) -> str:
    try:
        header, tensors = decode(frame, case.kind, case.expected, LAYOUT)
    except FedloomError as error:
        assert error.what == "a message was refused" and error.why
        return _reason(error.why)
    except BaseException as error:
        error.add_note(f"frame: {bytes(frame)!r}")
        raise
    again = encode(header, tensors)
    start = FRONT + int.from_bytes(again[8:12], "little")
    assert frame.endswith(again[start:]) and {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} == dict(
        case.expected
    )
    return "returned"


REASONS = {
    "size": r"it has \d+ bytes",
    "beginning": "it begins with",
    "version": "stale version",
    "header's length": "its header claims",
    "header's JSON": "its header is not valid",
    "layout": "it is of layout",
    "description": "its tensors are",
    "tensors' bytes": "its tensors take",
    "not finite": "tensor '",
    "header's fields": "'|its header (has no field|says no 'kind')",
}


def _reason(why: str) -> str:
    return next(name for name, pattern in REASONS.items() if re.match(pattern, why))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smallest", action="store_true", help="a check, not a measurement")
    options = parser.parse_args()
    fuzz(len(MUTATIONS) * 10)  # memory that is taken once: caches, pools
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frames = 20_000 if options.smallest else options.frames
    found = fuzz(frames, options.seed)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    by_outcome, by_mutation = Counter[str](), Counter[str]()
    for (mutation, outcome), count in found.outcomes.items():
        by_outcome[outcome] += count
        by_mutation[mutation] += count if outcome == "returned" else 0
    print(f"{frames:,} frames, seed {options.seed}: no other error than FedloomError")
    for outcome, count in by_outcome.most_common():
        print(f"  {count:9,} {outcome}{'' if outcome == 'returned' else ', refused'}")
    print("  returned, by mutation:", ", ".join(f"{name} {count:,}" for name, count in by_mutation.items()))
    print(
        f"  memory: at most {found.most:,} bytes beside one copy of a frame ({ALLOWED:,} declared); peak RSS grew by {grown:.1f} MB"
    )
    print(f"  {frames / found.seconds:,.0f} frames a second, with every frame's memory traced")


if __name__ == "__main__":
    main()
