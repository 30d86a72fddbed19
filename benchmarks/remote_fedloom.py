"""fedloom's part of `remote.py`: its broker with TLS and keys, a coordinator and two resident clients on its own links, signed.

The coordinator does what `engine: remote` does in a round, without a model: encode and store the vector, ask, read each answer
through the wire format, fold it in float64, forget the round before. A client adds its number, its place from one, instead of
training. Run as `remote_fedloom.py serve KIT NUMBERS ROUNDS OUT` and `remote_fedloom.py join KITS FOLDER PLACE...`, which are
clients with a connection and a thread each.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from remote_parts import ENOUGH, Measured, Memory, first_vector, free_port, processes

LEASE = 30.0


def measure(folder: Path, numbers: int, rounds: int, clients: int = 2, together: int = 1) -> Measured:
    """Rounds of vectors of so many float32 numbers to and from clients, so many of them together in a process."""
    from fedloom.engines.remote.definition import BrokerPlan, FederationPlan
    from fedloom.engines.remote.enrolment import FederationFolder

    places = list(range(1, clients + 1))
    plan = FederationPlan(
        name="benchmark", broker=BrokerPlan(host="127.0.0.1", port=free_port()), clients=[*map(_name, places)]
    )
    kits = FederationFolder.create(plan, folder / "benchmark", folder).path / "kits"
    out, here = folder / "rounds.jsonl", [sys.executable, Path(__file__)]
    with processes(folder) as own:
        server = own.start("coordinator", [*here, "serve", kits / "coordinator", str(numbers), str(rounds), out])
        own.until(lambda: "ready" in own.said("coordinator"), 200, "the coordinator")
        with Memory(
            {"coordinator": server}, lambda child: "broker" if "nats-server" in child.name() else "other"
        ) as memory:
            for first in places[::together]:
                own.start(
                    _name(first), [*here, "join", kits, folder, *map(str, places[first - 1 : first - 1 + together])]
                )
            seconds, cpu = own.rounds(out, rounds)
    return Measured(seconds, memory.each, memory.together, cpu)


def _name(place: int) -> str:
    return f"client-{place}"


def serve(folder: Path, numbers: int, rounds: int, out: Path) -> None:
    """The broker and the coordinator, until they are ended."""
    import torch

    from fedloom.deployment.service import connect
    from fedloom.engines.remote.broker import Broker
    from fedloom.engines.remote.kit import read_kit

    torch.set_num_threads(1)
    kit = read_kit(folder, "coordinator")
    broker = Broker(kit)
    broker.start()
    link = connect(kit, LEASE)
    try:
        print("ready", flush=True)
        while len(link.presence()) < len(link.clients):
            time.sleep(0.05)
        w = torch.from_numpy(first_vector(numbers))
        for number in range(1, rounds + 1):
            began, expected = time.perf_counter(), w[:8] + (len(link.clients) + 1) / 2
            w = one_round(link, w, number)
            seconds = time.perf_counter() - began
            if not torch.allclose(w[:8], expected, atol=1e-4):
                raise RuntimeError(f"round {number}: the mean is {w[:8]}, not {expected}")
            with out.open("a") as file:
                file.write(json.dumps({"seconds": seconds}) + "\n")
        time.sleep(ENOUGH)  # until it is ended
    finally:
        link.close()
        broker.stop()


LAYOUT = "0" * 64


def one_round(link: object, w: object, number: int) -> object:
    """The next vector."""
    import torch

    from fedloom.aggregation.mean import Mean
    from fedloom.codec.wire import Broadcast, Update, decode, encode, size_limit
    from fedloom.engines.remote.link import Ask

    content = encode(Broadcast(layout=LAYOUT, round=number), {"w": w})  # type: ignore[dict-item]
    blob = link.put(f"benchmark.{number}", content)  # type: ignore[attr-defined]
    del content
    facts, blobs = {"numbers": len(w)}, {"vector": blob}  # type: ignore[arg-type]
    asks = [
        Ask(run="benchmark", round=number, kind="train", client=name, facts=facts, blobs=blobs) for name in link.clients
    ]  # type: ignore[arg-type]
    link.ask(asks)  # type: ignore[attr-defined]
    link.forget("benchmark", number)  # type: ignore[attr-defined]
    declared = {"delta": (torch.float32, tuple(w.shape))}  # type: ignore[attr-defined]
    fold, left, until = Mean(), list(asks), time.monotonic() + ENOUGH
    partial = fold.empty()
    while left:
        for answer in link.answers(left, 10.0):  # type: ignore[attr-defined]
            if answer.status != "ok":
                raise RuntimeError(f"{answer.client}: {answer.reason}")
            left = [ask for ask in left if ask.client != answer.client]
            header, received = decode(link.fetch(answer, size_limit(declared)), Update, declared, LAYOUT)  # type: ignore[attr-defined]
            partial = fold.add(partial, received, header.weight, w)  # type: ignore[arg-type]
        if time.monotonic() > until:
            raise RuntimeError(f"round {number}: no answer of {[ask.client for ask in left]}")
    return fold.finish(partial)["delta"]


def join(kits: Path, folder: Path, places: list[int]) -> None:
    """Resident clients, until they are ended."""
    import torch

    torch.set_num_threads(1)
    threads = [threading.Thread(target=_client, args=(kits, folder / f"state-{k}", k), daemon=True) for k in places]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def _client(kits: Path, state: Path, own: int) -> None:
    import torch

    from fedloom.codec.wire import Broadcast, Update, decode, encode
    from fedloom.deployment.service import dial
    from fedloom.engines.remote.kit import read_kit
    from fedloom.engines.remote.link import Answer

    kit = read_kit(kits / _name(own), "client")
    link = dial(kit, state, LEASE)
    try:
        while True:
            ask = link.next(5.0)
            if ask is None:
                continue
            declared = {"w": (torch.float32, (int(str(ask.facts["numbers"])),))}
            header, tensors = decode(link.get(ask.blobs["vector"]), Broadcast, declared, LAYOUT)
            delta = tensors["w"].add_(float(own))
            facts = {"client": kit.name, "weight": 1.0, "samples": 1, "tokens": 1, "steps": 1, "train_loss": 0.5}
            message = encode(Update(layout=LAYOUT, round=header.round, **facts), {"delta": delta})
            link.answer(Answer(id=ask.id, ask=ask.digest, client=kit.name, status="ok"), message)
    finally:
        link.close()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        join(Path(sys.argv[2]), Path(sys.argv[3]), [*map(int, sys.argv[4:])])
