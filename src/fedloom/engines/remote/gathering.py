"""Waiting for answers: until all are in, enough are, or time is up."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedloom.engines.remote.link import Answer, Ask, ServerLink

__all__ = ["Gathering", "clean"]

_MOST_TEXT = 4000
_TICK = 1.0


class Gathering:
    """The answers to asks, one a client, by the client's number. Answers are small: their contents stay where they are."""

    def __init__(self, link: ServerLink, asks: Mapping[int, Ask], seconds: float, first: int | None = None) -> None:
        self.answers: dict[int, Answer] = {}
        self.reason: str | None = None
        """Why no more is waited for; None while it is, and when all have answered."""
        self._link, self._seconds, self._first = link, seconds, first
        self._open = dict(asks)
        self._numbers = {(ask.client, ask.id): k for k, ask in asks.items()}
        link.ask(list(asks.values()))
        self._until = time.monotonic() + seconds

    @property
    def late(self) -> list[int]:
        """The numbers of those who have not answered."""
        return list(self._open)

    @property
    def timed_out(self) -> bool:
        """Whether time was up before all, or enough, had answered."""
        return self.reason is not None and not self._enough

    def wait_for(self, client: int) -> Answer | None:
        """The client's answer; None when it has none by the time that no more is waited for."""
        while client in self._open and self.reason is None:
            self._wait()
        return self.answers.get(client)

    def withdraw(self) -> None:
        """Go on without those who have not answered: their answers are refused from now on."""
        if self._open:
            self._link.cancel(list(self._open.values()))

    @property
    def _enough(self) -> bool:
        return self._first is not None and sum(a.status == "ok" for a in self.answers.values()) >= self._first

    def _wait(self) -> None:
        left = self._until - time.monotonic()
        found = self._link.answers(list(self._open.values()), max(0.0, min(left, _TICK)))
        for answer in found:
            number = self._numbers.get((answer.client, answer.id))
            ask = None if number is None else self._open.get(number)
            if number is None or ask is None or answer.ask != ask.digest:
                continue  # of another question: it stands for nothing here, and the client is still waited for
            del self._open[number]
            self.answers[number] = answer
            if self._open and self._enough:
                self.reason = f"the round was closed when {self._first} updates had arrived"
                return
        if self._open and not found and left <= 0:  # what had come by then has been read
            self.reason = f"it did not answer within {self._seconds:g} seconds"


def clean(text: str | None) -> str:
    """What a client says of itself, as it can be shown: printable, and not too long."""
    shown = "".join(c for c in text or "no reason was given" if c.isprintable() or c == "\n")
    return shown[:_MOST_TEXT]
