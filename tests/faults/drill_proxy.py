"""A wire between one party and the broker that can be cut, slowed, held and damaged; TLS goes through it untouched."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

__all__ = ["Proxy"]

_PIECE = 1 << 14


class Proxy:
    """Listens on a port of 127.0.0.1 and hands on to another.

    Sockets are shut down rather than closed: processes that were forked meanwhile hold them too.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._refused = False
        self.rate: float | None = None
        """Bytes a second, each way; None for no bound."""
        self.delay = 0.0
        """Seconds by which every piece is late."""
        self._damage: str | None = None
        self.done = 0
        """How many pieces have been damaged."""
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and refuse new ones until `mend`."""
        self._refused = True
        self._end_all()

    def hold(self) -> None:
        """Hand nothing on, and say nothing: both ends believe that the other is there."""
        self._flowing.clear()

    def mend(self) -> None:
        """As before all faults."""
        self._refused, self.rate, self.delay, self._damage = False, None, 0.0, None
        self._flowing.set()

    def damage(self, how: str) -> None:
        """The next piece of some size that the party sends is hit: `flip` a bit of it, or `truncate` it and end the connection."""
        self._damage = how

    def close(self) -> None:
        """End it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._flowing.set()
        self._end_all()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refused:
                _end(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                _end(near)
                continue
            far.settimeout(None)
            with self._lock:
                self._pairs.add((near, far))
            for source, sink, up in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(source, sink, up, (near, far)), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, up: bool, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        try:
            while piece := source.recv(_PIECE if self.rate is None else 1024):
                self._flowing.wait()
                if self.delay:
                    time.sleep(self.delay)
                if self.rate is not None:
                    time.sleep(len(piece) / self.rate)
                if up and self._damage is not None and len(piece) >= 64:
                    how, self._damage = self._damage, None
                    self.done += 1
                    half = len(piece) // 2
                    if how == "truncate":
                        sink.sendall(piece[:half])
                        break
                    piece = piece[:half] + bytes([piece[half] ^ 1]) + piece[half + 1 :]
                sink.sendall(piece)
        except OSError:
            pass
        finally:
            with self._lock:
                self._pairs.discard(pair)
            for each in pair:
                _end(each)

    def _end_all(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for each in pair:
                _end(each)


def _end(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
