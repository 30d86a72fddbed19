"""The file that names the parties of a federation: every mistake at once, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from federation_tools import kit_of

from fedloom.engines.remote import authority
from fedloom.engines.remote.definition import read_plan
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.errors import ConfigError

HEAD = "name: hospitals\nbroker: {host: fl.example.org}\n"


def plan_of(folder: Path, text: str) -> FederationFolder:
    (folder / "fed.yaml").write_text(text)
    plan = read_plan(folder / "fed.yaml")
    return FederationFolder.create(plan, folder / plan.name, folder)


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        ("", ["line 1: the file is empty. Begin with name:, broker: and clients:."]),
        ("clients: [a]\n", ["name: this key is required", "broker: this key is required, and missing. Add it, such"]),
        (HEAD + "clients: [a b]\n", ["line 3, clients[0]: 'a b' is not a name", "Write a-b."]),
        (HEAD + "clients: [é, -a, 1, ok]\n", ["'é' is not a name", "'-a' is not a name", "clients[2]: 1 is not text"]),
        (HEAD + f"clients: [{'a' * 65}]\n", [f"clients[0]: '{'a' * 65}' is not a name"]),
        (HEAD + "clients: [a, b, A]\n", ["clients[2]: the name 'A' is taken, by a client, 'a'"]),
        (HEAD + "clients: [coordinator, operator, con]\n", ["taken, by the coordinator", "taken, by the operator", "'con' is not"]),
        (HEAD + "clients: [boss]\noperator: boss\n", ["clients[0]: the name 'boss' is taken, by the operator"]),
        (HEAD + "clients: [a]\noperator: a.b\n", ["operator: 'a.b' is not a name"]),
        (HEAD + "clients: a\n", ["clients: 'a' is not a list of texts. Write a list: [a]."]),
        (HEAD + "clients: [a]\nserver: x\n", ["line 4, server: there is no such key. Valid: broker, clients, name, operator."]),
        ("name: a/b\nbroker: {host: h, prot: 1}\nclients: []\n", ["'a/b' is not a name", "prot: there is no such key. Did you"]),
        ("name: h\nbroker: {host: 'http://h'}\nclients: []\n", ["broker.host: 'http://h' is not a host's name or address"]),
        ("name: h\nbroker: {host: 1.2.3.456}\nclients: []\n", ["broker.host: '1.2.3.456' is not a host's"]),
        ("name: h\nbroker: {host: h, port: 70000}\nclients: []\n", ["broker.port: 70000 is not a whole number"]),
        ("name: h\nbroker: {host: h, hosts: ['a b']}\nclients: []\n", ["broker.hosts[0]: 'a b' is not a host's name"]),
        ("name: h\nbroker: {host: h, monitor: 4222}\nclients: []\n", ["broker.monitor: this is the port of the broker"]),
        ("name: h\nbroker: {}\nclients: []\n", ["broker: give `host`, of a broker to be started, or `urls`"]),
        ("name: h\nbroker: {host: h, urls: ['tls://h:1']}\nclients: []\n", ["broker: give `host`"]),
        ("name: h\nbroker: {urls: ['nats://h:1', 'tls://h', 'tls://u:p@h:1']}\nclients: []\n",
         ["'nats://h:1' is not of the form", "'tls://h' is", "u:p@h:1' is"]),
        ("name: h\nbroker: {urls: ['tls://h:1'], port: 1, ca: no.pem}\nclients: []\n",
         ["broker.port: this is for a broker that is started", "no file 'no.pem'"]),
        ("name: h\nbroker: {host: h, ca: x.pem}\nclients: []\n", ["broker.ca: this is for a cluster that exists"]),
    ],
)  # fmt: skip
def test_every_mistake_of_the_file_is_told_at_once(tmp_path: Path, text: str, mistakes: list[str]) -> None:
    (tmp_path / "fed.yaml").write_text(text)
    with pytest.raises(ConfigError) as told:
        read_plan(tmp_path / "fed.yaml")
    for mistake in mistakes:
        assert mistake in str(told.value)
    assert "run directory" not in str(told.value)  # that is the name of an experiment


@pytest.mark.parametrize(
    ("broker", "urls", "listens"),
    [
        ("host: fl.example.org", ["tls://fl.example.org:4222"], "0.0.0.0"),
        ("host: 127.0.0.1, port: 5", ["tls://127.0.0.1:5"], "127.0.0.1"),
        ("host: localhost", ["tls://localhost:4222"], "127.0.0.1"),
        ("host: '::1'", ["tls://[::1]:4222"], "::1"),
        ("host: '2001:db8::7'", ["tls://[2001:db8::7]:4222"], "::"),
        (
            "host: a.b, hosts: [192.0.2.7, a.b], listen: 10.0.0.5",
            ["tls://a.b:4222", "tls://192.0.2.7:4222"],
            "10.0.0.5",
        ),
    ],
)
def test_where_the_broker_is_dialled_and_where_it_listens(
    tmp_path: Path, broker: str, urls: list[str], listens: str
) -> None:
    made = plan_of(tmp_path, f"name: hospitals\nbroker: {{{broker}}}\nclients: [north]\n")
    kit = kit_of(made, "coordinator")
    assert kit.urls == urls and kit.broker is not None and kit.broker.listen == listens
    assert set(made.certificates()["broker"].hosts) == {url[6:].rpartition(":")[0].strip("[]") for url in urls}


def test_a_cluster_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    """Its authority is trusted in place of ours, which still names the federation."""
    _, theirs = authority.new_authority("the organisation")
    (tmp_path / "cluster.pem").write_bytes(theirs)
    made = plan_of(
        tmp_path, "name: h\nbroker: {urls: ['tls://nats.example.org:4222'], ca: cluster.pem}\nclients: [north]\n"
    )
    kit = kit_of(made, "north")
    assert kit.authority.read_bytes() == theirs and kit.id == authority.identity(
        (kit.folder / "ca.pem").read_bytes(), where=""
    )
    assert kit.urls == ["tls://nats.example.org:4222"] and kit_of(made, "coordinator").broker is None
    assert {path.name for path in (made.path / "cluster").iterdir()} == {"accounts.conf"}
    before = (made.path / "cluster" / "accounts.conf").read_text()
    made.revoke(["north"])
    assert kit.key in before and kit.key not in (made.path / "cluster" / "accounts.conf").read_text()
