"""The subjects and streams of a federation on a broker.

| subject                                            | kept in        | what                                                |
|----------------------------------------------------|----------------|-----------------------------------------------------|
| `fl.ask.<client>.<run>.<round>.<kind>.<part>.<name>` | ASK          | an ask; one message a subject                       |
| `fl.ans.<client>.<run>.<round>.<digest>`           | ANS_<client>   | answers, named by the digest of their ask           |
| `fl.up.<client>.<run>.<round>.<key>.<chunk>`       | UP_<client>    | chunks of the content of an answer                  |
| `fl.down.<name>.chunk.<chunk>`                     | DOWN           | chunks of what clients fetch                        |
| `fl.down.<name>.used.<run>.<round>`                | DOWN           | that asks of this round name it                     |
| `fl.here.<client>`                                 | -              | beats of a client                                   |
| `fl.fetch.<client>`                                | -              | a client's request for a blob                       |
| `_INBOX_<client>.ask`, `.down.<nonce>`, `.news`    | -              | asks, chunks and withdrawals, delivered to a client |

Clients have no right to any API of the broker: asks and chunks are delivered by consumers that the coordinator made, at most a
window of them unacknowledged. Streams that clients write are their own, each with a bound of its own.
"""

from __future__ import annotations

import re

from fedloom.engines.remote.link import Ask

__all__ = ["ASK", "COORDINATOR", "DOWN", "answers_of", "ask_subject", "inbox", "round_of", "token", "uploads_of"]

ASK, DOWN = "ASK", "DOWN"
COORDINATOR = "coordinator"

_PLAIN = re.compile(r"[^A-Za-z0-9_-]")


def token(text: str) -> str:
    """A text as one token of a subject: what is not a letter, a digit, `_` or `-` is written `=` and its code in hexadecimal."""
    return _PLAIN.sub(lambda found: f"={ord(found[0]):x}=", text) or "="


def inbox(party: str) -> str:
    """The prefix of the subjects that are delivered to one party."""
    return f"_INBOX_{party}"


def answers_of(client: str) -> str:
    """The stream of a client's answers."""
    return f"ANS_{client}"


def uploads_of(client: str) -> str:
    """The stream of a client's uploads."""
    return f"UP_{client}"


def ask_subject(ask: Ask, name: str) -> str:
    """Where an ask is kept."""
    return f"fl.ask.{ask.client}.{token(ask.run)}.{ask.round}.{ask.kind}.{ask.part}.{name}"


def answer_subject(ask: Ask) -> str:
    """Where the answers to an ask are kept."""
    return f"fl.ans.{ask.client}.{token(ask.run)}.{ask.round}.{ask.digest}"


def upload_subject(ask: Ask, key: str) -> str:
    """Where the chunks of an answer's content are kept, without their numbers."""
    return f"fl.up.{ask.client}.{token(ask.run)}.{ask.round}.{token(key)}"


def round_of(subject: str) -> tuple[str, int] | None:
    """The run, as a token, and the round that an ask, an answer or a chunk of an upload belongs to; None when it is none."""
    parts = subject.split(".")
    if len(parts) < 6 or not re.fullmatch(r"-?\d{1,18}", parts[4]):
        return None
    return parts[3], int(parts[4])
