"""`fedloom federation`: what its verbs make and say, and that they never say a secret."""

from __future__ import annotations

import builtins
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from verb_tools import fedloom

from fedloom.engines.remote.broker import Broker
from fedloom.engines.remote.kit import read_kit

PLAN = "name: hospitals\nbroker: {{host: 127.0.0.1, port: {port}}}\nclients: [north, south]\n"


@pytest.fixture
def made(place: Path) -> Path:
    """A federation in the current folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (place / "fed.yaml").write_text(PLAN.format(port=probe.getsockname()[1]))
    done = fedloom("federation", "init", "fed.yaml")
    assert done.code == 0, done.err
    return Path("hospitals")


@pytest.fixture
def broker(made: Path) -> Iterator[Broker]:
    started = Broker(read_kit(made / "kits" / "coordinator"))
    started.start()
    yield started
    started.stop()


def secrets(folder: Path) -> list[str]:
    seeds = [file.read_text().strip() for file in folder.rglob("secret.nk")]
    keys = [line for file in folder.rglob("*.key") for line in file.read_text().splitlines()[1:-1]]
    assert seeds and keys
    return seeds + keys


def test_init_says_what_to_do_next(place: Path) -> None:
    (place / "fed.yaml").write_text(PLAN.format(port=4222))
    done = fedloom("federation", "init", "fed.yaml", "--out", "elsewhere")
    assert done.code == 0 and Path("elsewhere/kits/north.tar.gz").is_file()
    assert "fedloom serve elsewhere/kits/coordinator" in done.out and "elsewhere/kits/operator.tar.gz" in done.out
    again = fedloom("federation", "init", "fed.yaml", "--out", "elsewhere")
    assert again.code == 2 and "the folder exists, and nothing is overwritten" in again.error
    (place / "fed.yaml").write_text("name: a b\nclients: [c]\nbrokr: {}\n")
    wrong = fedloom("federation", "init", "fed.yaml")
    assert wrong.code == 2 and "fed.yaml: 3 mistakes" in wrong.error
    assert fedloom("federation", "init", "no.yaml").code == 2
    (place / "fed.yaml").write_text('name: banks\nbroker: {urls: ["tls://nats.example.org:4222"]}\nclients: []\n')
    assert "banks/cluster/accounts.conf" in fedloom("federation", "init", "fed.yaml").out


def test_status_shows_parties_and_expiry_and_no_secret(made: Path) -> None:
    facts = fedloom("federation", "status", "--json").json
    assert [(p["name"], p["role"], p["kit"]) for p in facts["parties"]] == [
        ("coordinator", "coordinator", True), ("operator", "operator", True), ("north", "client", True), ("south", "client", True),
    ]  # fmt: skip
    assert (
        facts["certificates"]["broker"]["days_left"] == 396 and facts["certificates"]["authority"]["days_left"] == 3649
    )
    assert (
        facts["certificates"]["broker"]["hosts"] == ["127.0.0.1"] and facts["broker"] == "not running on this machine"
    )
    text = fedloom("federation", "status", "--in", made).out
    for party in facts["parties"]:
        assert re.search(rf"{party['role']} +{party['name']} +{party['fingerprint']}", text)
    assert "certificate of the broker: until 20" in text and ", 396 days" in text


def test_add_revoke_renew(made: Path) -> None:
    done = fedloom("federation", "add", "west", "east")
    assert done.code == 0 and "kits/west.tar.gz" in done.out and "No broker runs here" in done.out
    assert "the name 'west' is taken" in fedloom("federation", "add", "west").error
    assert fedloom("federation", "revoke", "north").out.startswith("north: revoked")
    assert "no client 'north' is enrolled" in fedloom("federation", "revoke", "north").error
    before = json.loads(fedloom("federation", "status", "--json").out)
    assert [p["name"] for p in before["parties"] if p["revoked"]] == ["north"]
    assert re.search(r"north .*revoked 20", fedloom("federation", "status").out)
    done = fedloom("federation", "renew", "--authority", "--host", "fl.example.org")
    assert done.code == 0 and "authority: valid until 20" in done.out and "new ca.pem" in done.out
    after = fedloom("federation", "status", "--json").json
    assert set(after["certificates"]["broker"]["hosts"]) == {"127.0.0.1", "fl.example.org"}
    assert after["id"] == before["id"]
    assert [p["key"] for p in after["parties"]] == [p["key"] for p in before["parties"]]


def test_a_broker_that_runs_takes_changes_over(made: Path, broker: Broker) -> None:
    said = [fedloom("federation", *words) for words in (["add", "west"], ["revoke", "north"], ["renew"])]
    assert [done.code for done in said] == [0, 0, 0]
    assert all("The broker has taken it over" in done.out for done in said)
    accounts = (broker.folder / "accounts.conf").read_text()
    assert "hospitals/west" in accounts and "hospitals/north" not in accounts
    assert fedloom("federation", "status", "--json").json["broker"] == f"running, process {broker.pid}"


def test_no_verb_says_a_secret(made: Path) -> None:
    said = [
        fedloom(*words)
        for words in (
            ["federation", "status"], ["federation", "status", "--json"], ["federation", "add", "west"],
            ["federation", "renew", "--authority", "--json"], ["federation", "revoke", "south", "--json"],
            ["--debug", "federation", "add", "west"], ["--debug", "federation", "revoke", "none"],
        )
    ]  # fmt: skip
    found = secrets(made)
    assert not [s for s in found for done in said if s in done.out + done.err]


def test_where_the_federation_is(made: Path, place: Path) -> None:
    assert fedloom("federation", "status", "--in", made).code == 0
    nowhere = fedloom("federation", "status", "--in", made / "kits")
    assert nowhere.code == 2 and "no federation is here: No such file" in nowhere.error
    (place / "fed.yaml").write_text(PLAN.format(port=4222).replace("hospitals", "banks"))
    assert fedloom("federation", "init", "fed.yaml").code == 0
    both = fedloom("federation", "status")
    assert both.code == 2 and "there are several federations here" in both.error and "--in hospitals" in both.error
    (made / "federation.json").write_text("{}")
    damaged = fedloom("federation", "status", "--in", made)
    assert damaged.code == 2 and "the register is damaged" in damaged.error


def test_the_extra_is_not_installed(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "nats":
            raise ModuleNotFoundError("No module named 'nats'", name="nats")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    done = fedloom("federation", "status")
    assert done.code == 2
    assert done.error.endswith("needs the package nats. Install it: pip install 'fedloom[remote]'.")
