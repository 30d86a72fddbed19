"""A link in memory: what a broker would hold, and both ends of it. Its log outlives coordinators and clients."""

from __future__ import annotations

import threading
import time
from hashlib import sha256

from fedloom.engines.remote.link import Answer, Ask, Blob, Presence
from fedloom.errors import FedloomError


class Broker:
    """Asks, blobs and answers, under one lock."""

    def __init__(self):
        self.changed = threading.Condition()
        self.blobs = {}
        self.waiting = {}
        self.withdrawn = set()
        self.log = {}
        self.online = {}
        self.forgotten = []
        self.fetched = []
        self.puts = []
        self.refused = []

    def put(self, key, content):
        digest = sha256(content).hexdigest()
        with self.changed:
            assert self.blobs.get(key, content) == content, f"{key} is put with other bytes"
            self.blobs[key] = content
            self.puts.append(key)
        return Blob(key=key, sha256=digest, size=len(content))


class CoordinatorLink:
    """A coordinator's end; another one stands for another process."""

    def __init__(self, broker):
        self.broker, self.returned = broker, set()

    def put(self, key, content):
        return self.broker.put(key, content)

    def ask(self, asks):
        with self.broker.changed:
            for ask in asks:
                self.broker.withdrawn.discard(ask.digest)
                if ask.digest not in self.broker.log:
                    self.broker.waiting[ask.digest] = ask
            self.broker.changed.notify_all()

    def answers(self, asks, timeout):
        wanted = {ask.digest for ask in asks}
        until = time.monotonic() + timeout
        with self.broker.changed:
            while True:
                found = [a for d, a in self.broker.log.items() if d in wanted and d not in self.returned]
                left = until - time.monotonic()
                if found or left <= 0:
                    break
                self.broker.changed.wait(left)
        self.returned |= {answer.ask for answer in found}
        return found

    def fetch(self, answer, limit):
        blob = answer.content
        if blob is None or blob.size > limit:
            raise FedloomError("an answer's content was refused", why=f"it is missing, or larger than {limit} bytes")
        content = self.broker.blobs[blob.key]
        if sha256(content).hexdigest() != blob.sha256:
            raise FedloomError("an answer's content was refused", why="it has another digest")
        self.broker.fetched.append((answer.client, len(content)))
        return content

    def cancel(self, asks):
        with self.broker.changed:
            for ask in asks:
                self.broker.waiting.pop(ask.digest, None)
                self.broker.withdrawn.add(ask.digest)

    def forget(self, run, before):
        self.broker.forgotten.append(before)

    def presence(self):
        return {name: Presence(client=name, seen=0.0) for name in self.broker.online}


class NodeLink:
    """A client's end."""

    def __init__(self, broker, name):
        self.broker, self.name, self.got = broker, name, []

    def next(self, timeout):
        until = time.monotonic() + timeout
        with self.broker.changed:
            while True:
                for ask in self.broker.waiting.values():
                    if ask.client == self.name:
                        return ask
                left = until - time.monotonic()
                if left <= 0:
                    return None
                self.broker.changed.wait(left)

    def get(self, blob):
        content = self.broker.blobs[blob.key]
        assert sha256(content).hexdigest() == blob.sha256
        self.got.append(blob.key)
        return content

    def cancelled(self, ask):
        return ask.digest in self.broker.withdrawn

    def answer(self, answer, content=None):
        if content is not None:
            blob = self.broker.put(f"up.{self.name}.{answer.ask[:32]}.{sha256(content).hexdigest()[:8]}", content)
            answer = answer.model_copy(update={"content": blob})
        with self.broker.changed:
            if answer.ask in self.broker.withdrawn:
                self.broker.refused.append(answer)
                return
            self.broker.waiting.pop(answer.ask, None)
            self.broker.log.setdefault(answer.ask, answer)
            self.broker.changed.notify_all()


class Crew:
    """Clients in one thread, each at work while it is in `working`; a dead one forgets all that is not on its disk."""

    def __init__(self, broker, make):
        self.broker, self.make = broker, make
        self.nodes, self.working = {}, set()
        self.errors = []
        self.handled = []
        self.before = lambda ask: None
        """Called before an ask is handled; raising Skip leaves it where it is."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def join(self, *names):
        for name in names:
            self.nodes[name] = self.make(name, NodeLink(self.broker, name))
            self.working.add(name)
            self.broker.online[name] = True

    def leave(self, *names):
        """They die: what they hold in memory is lost."""
        for name in names:
            self.working.discard(name)
            self.nodes.pop(name, None)
            self.broker.online.pop(name, None)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "a client hangs"
        if self.errors:
            raise self.errors[0]

    def _work(self):
        import torch

        torch.set_num_threads(1)
        while not self._over.is_set():
            idle = True
            for name in sorted(self.working):
                node = self.nodes.get(name)
                ask = node and NodeLink(self.broker, name).next(0)
                if not ask:
                    continue
                try:
                    self.before(ask)
                    node.handle(ask)
                    self.handled.append((name, ask.round, ask.kind))
                    idle = False
                except Skip:
                    continue
                except Exception as error:
                    self.errors.append(error)
                    self._over.set()
            if idle:
                with self.broker.changed:
                    self.broker.changed.wait(0.02)


class Skip(Exception):
    """The client does not get to this ask now."""


def forged(answer: Answer, **changes) -> Answer:
    """Another answer than the client's own."""
    return answer.model_copy(update=changes)


__all__ = ["Ask", "Broker", "CoordinatorLink", "Crew", "NodeLink", "Skip", "forged"]
