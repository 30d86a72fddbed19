"""Which subjects each party may use, and how the broker is told.

| party       | publishes                                                         | subscribes             |
|-------------|-------------------------------------------------------------------|------------------------|
| client c    | `fl.ans.c.>` answers, `fl.up.c.>` chunks of uploads,              | `_INBOX_c.>`           |
|             | `fl.here.c` presence, `fl.fetch.c` requests for what it is to get |                        |
|             | `$JS.ACK.ASK.c.>`, `$JS.ACK.DOWN.c.>` acknowledgements            |                        |
| operator o  | `fl.op.>` requests to the coordinator                             | `_INBOX_o.>`           |
| coordinator | `fl.>`, `$JS.>`, `$KV.>`, every party's inbox,                    | `fl.>`, `$JS.>`,       |
|             | `_R_.>` replies to requests                                       | `$KV.>`, its own inbox |

Whatever is not in the table is denied: streams and consumers are made, changed and read by the coordinator alone. Its consumers
push asks and chunks into the inboxes of clients, who may only acknowledge those of the consumer that has their name.

Permissions say what a party may publish, but the broker does not check where it asks the reply to be sent: within one account,
a client that publishes its own answer "with reply to" `fl.ans.other.x` has the broker store the acknowledgement as an answer of
the other, and can fill the other's stream, or speak as its presence. So every party but the coordinator has an account of its own,
and what it may publish is exported to that account alone. A reply then stays in the account of the one who asked; it reaches
nothing else. The coordinator sees such requests with replies to `_R_.>`, which it answers as any other. What the coordinator, or a
consumer that it made, sends to a party's inbox is exported to that party; a consumer begins to push only when there is a
subscription to exactly its subject, not to a wildcard.

The broker forgets a request whose reply takes longer than 2 minutes; an operator's, of which there may be several, 10.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

__all__ = ["COORDINATOR", "OPERATOR_SUBJECTS", "accounts", "client_subjects", "inbox"]

COORDINATOR = "coordinator"
"""The coordinator's name; no other party may have it."""

COORDINATOR_SUBJECTS = ("fl.>", "$JS.>", "$KV.>")

OPERATOR_SUBJECTS = ("fl.op.>",)

_REPLIES = "_R_.>"
_PATIENCE = "10m"
_CONNECTIONS, _SUBSCRIPTIONS = 16, 256
"""Of one party: many times what a node needs, and few enough that it cannot exhaust the broker."""


def client_subjects(client: str) -> tuple[str, ...]:
    """What a client may publish."""
    return (
        f"fl.ans.{client}.>",
        f"fl.up.{client}.>",
        f"fl.here.{client}",
        f"fl.fetch.{client}",
        f"$JS.ACK.ASK.{client}.>",
        f"$JS.ACK.DOWN.{client}.>",
    )


def inbox(party: str) -> str:
    """The prefix of a party's inboxes."""
    return f"_INBOX_{party}"


def accounts(
    federation: str, coordinator: str, operator: tuple[str, str], clients: Mapping[str, str], *, disk: float | None
) -> str:
    """The parties as the entries of the `accounts` map of a nats-server's configuration.

    coordinator: its public key; operator: name and public key; clients: public keys by name; disk: gigabytes that the
    federation's streams may reserve, 10 and 2 for each client when it is None.
    """
    disk = 10 + 2 * len(clients) if disk is None else disk
    others: list[tuple[str, str, Sequence[str]]] = [(*operator, OPERATOR_SUBJECTS)]
    others += [(client, clients[client], client_subjects(client)) for client in sorted(clients)]
    exports = [_export(federation, party, subject) for party, _, subjects in others for subject in subjects]
    inboxes = {party: f"{inbox(party)}.>" for party, _, _ in others}
    exports += [
        f"{{stream: {_quoted(box)}, accounts: [{_quoted(f'{federation}/{party}')}]}}" for party, box in inboxes.items()
    ]
    own = [*COORDINATOR_SUBJECTS, f"{inbox(COORDINATOR)}.>"]
    server = [
        f"{_quoted(federation)}: {{",
        f"  jetstream: {{max_mem: 64MB, max_file: {round(disk * 1e9)}}}",
        f"  users: [{_user(coordinator, [*own, _REPLIES, *inboxes.values()], own)}]",
        "  exports: [",
        *(f"    {export}" for export in exports),
        "  ]",
        "}",
    ]
    return "\n".join([*server, *(line for other in others for line in _account(federation, *other)), ""])


def _account(federation: str, party: str, key: str, subjects: Sequence[str]) -> list[str]:
    source, box = _quoted(federation), f"{inbox(party)}.>"
    return [
        f"{_quoted(f'{federation}/{party}')}: {{",
        f"  limits: {{max_connections: {_CONNECTIONS}, max_subscriptions: {_SUBSCRIPTIONS}}}",
        f"  users: [{_user(key, subjects, [box])}]",
        "  imports: [",
        *(f"    {{service: {{account: {source}, subject: {_quoted(subject)}}}}}" for subject in subjects),
        f"    {{stream: {{account: {source}, subject: {_quoted(box)}}}}}",
        "  ]",
        "}",
    ]


def _export(federation: str, party: str, subject: str) -> str:
    several = f", response: stream, threshold: {_quoted(_PATIENCE)}" if subject in OPERATOR_SUBJECTS else ""
    return f"{{service: {_quoted(subject)}, accounts: [{_quoted(f'{federation}/{party}')}]{several}}}"


def _user(key: str, publish: Sequence[str], subscribe: Sequence[str]) -> str:
    allowed = f"publish: {{allow: {json.dumps([*publish])}}}, subscribe: {{allow: {json.dumps([*subscribe])}}}"
    return f"{{nkey: {key}, permissions: {{{allowed}}}}}"


def _quoted(text: str) -> str:
    return json.dumps(text)
