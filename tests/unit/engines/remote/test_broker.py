"""The broker of a federation: who gets in, what changes while it runs, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from federation_tools import Node, connect, free_port, kit_of, new_federation, refused, started, together, until

from fedloom.engines.remote import authority
from fedloom.engines.remote import broker as broker_module
from fedloom.engines.remote.broker import Broker, find_server, reload_running, running
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.engines.remote.kit import connect_options, read_kit
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


# --- who gets in ---


def test_an_unknown_key_is_refused(federation: FederationFolder, broker: Broker, tmp_path: Path) -> None:
    kit = kit_of(federation, "north")
    seed, _ = authority.new_nkey()
    strange = tmp_path / "strange.nk"
    authority.write_secret(strange, seed)
    error = refused(kit, nkeys_seed=str(strange))
    assert "authorization violation" in str(error).lower()
    assert "the broker does not know the key of 'north', or no longer" in str(explain(kit, error))
    assert refused(kit, nkeys_seed=None) != "no secret"  # nor is one without a key


def test_a_kit_of_another_federation_is_refused_by_its_certificate(broker: Broker, tmp_path: Path) -> None:
    """Both ways: its authority did not sign the broker's certificate, and the broker does not know its key."""
    other = new_federation(tmp_path / "other", name="banks")
    kit = kit_of(other, "north").model_copy(update={"urls": broker.kit.urls})
    error = refused(kit)
    assert isinstance(error, ssl.SSLCertVerificationError)
    told = str(explain(kit, error))
    assert "the broker there is not of this kit's federation" in told and "'banks'" in told
    with pytest.raises(UsageError, match="not of this kit's federation"):
        check_reach(kit)
    trusting = connect_options(kit)["tls"]
    trusting.load_verify_locations(cafile=str(broker.kit.folder / "ca.pem"))
    assert "authorization violation" in str(refused(kit, tls=trusting)).lower()


def test_nothing_is_said_in_the_clear(broker: Broker) -> None:
    assert broker.kit.broker is not None
    with socket.create_connection(("127.0.0.1", broker.kit.broker.port), 5) as plain:
        plain.settimeout(0.5)
        with pytest.raises(TimeoutError):
            plain.recv(100)  # no greeting either
        plain.settimeout(5)
        plain.sendall(b'CONNECT {"verbose": false}\r\nPING\r\n')
        answer = b""
        with pytest.raises((ConnectionError, StopIteration)):
            while True:
                answer += (part := plain.recv(1000))
                if not part:
                    raise StopIteration
        assert b"PONG" not in answer and b"INFO" not in answer


def test_a_client_says_nothing_in_the_clear_to_a_server_that_wants_no_tls(federation: FederationFolder) -> None:
    """Whoever stands between could greet with "no TLS is required": the key's signature would follow in the clear."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def impostor() -> None:
            for _ in range(2):
                peer, _ = server.accept()
                with peer, suppress(ConnectionError):
                    peer.settimeout(20)
                    peer.sendall(
                        b'INFO {"server_id": "x", "version": "2.15.1", "max_payload": 1000000, "nonce": "abc"}\r\n'
                    )
                    while said := peer.recv(4000):
                        heard.append(said)

        thread = threading.Thread(target=impostor)
        thread.start()
        kit = kit_of(federation, "north").model_copy(update={"urls": [f"tls://127.0.0.1:{server.getsockname()[1]}"]})
        refused(kit, connect_timeout=1)
        with pytest.raises(UsageError, match="there is a server, but it does not begin with TLS"):
            check_reach(kit)
        thread.join(20)
    assert heard and all(said[:1] in b"\x15\x16" for said in heard)  # a TLS handshake, and its end, and nothing else


# --- what changes while it runs ---


def test_a_revoked_client_is_cut_off_at_once_and_the_others_are_not(
    federation: FederationFolder, broker: Broker
) -> None:
    async def scene() -> None:
        coordinator, north, south = [
            await connect(kit_of(federation, name)) for name in ("coordinator", "north", "south")
        ]
        revoked = kit_of(federation, "north")
        kept = revoked.folder.parent / "kept"
        shutil.copytree(revoked.folder, kept)  # its owner has it still
        federation.revoke(["north"])
        broker.reload(kit_of(federation, "coordinator"))
        await until(lambda: north.disconnected == 1)
        assert not north.client.is_connected
        with pytest.raises(Exception, match=r"(?i)authorization violation"):
            await connect(read_kit(kept))
        box = await coordinator.client.subscribe("fl.here.*")
        await coordinator.flush()
        await south.client.publish("fl.here.south", b"still here")
        assert (await box.next_msg(10)).data == b"still here"
        assert (coordinator.disconnected, south.disconnected) == (0, 0)
        for node in (coordinator, south):
            await node.client.close()

    asyncio.run(scene())
    assert "north" not in kit_of(federation, "coordinator").clients


def test_a_client_that_is_added_gets_in_and_nobody_is_interrupted(federation: FederationFolder, broker: Broker) -> None:
    async def scene() -> None:
        coordinator, north = [await connect(kit_of(federation, name)) for name in ("coordinator", "north")]
        box = await coordinator.client.subscribe("fl.here.*")
        await coordinator.flush()
        federation.add(["west"])
        kit = broker.kit.changed()
        assert kit is not None and set(kit.clients) == {"north", "south", "west"}
        broker.reload(kit)
        west = await connect(kit_of(federation, "west"))
        for name, node in (("west", west), ("north", north)):
            await node.client.publish(f"fl.here.{name}", b"")
            assert (await box.next_msg(10)).subject == f"fl.here.{name}"
        assert (coordinator.disconnected, north.disconnected) == (0, 0)
        for node in (coordinator, north, west):
            await node.client.close()

    asyncio.run(scene())
    assert broker.kit.changed() is None


def test_a_renewed_certificate_is_shown_without_a_restart(federation: FederationFolder, broker: Broker) -> None:
    def serial() -> str:
        assert broker.kit.broker is not None
        context = connect_options(broker.kit)["tls"]
        with (
            socket.create_connection(("127.0.0.1", broker.kit.broker.port), 5) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
        ):
            return str(secure.getpeercert()["serialNumber"])

    before, pid = serial(), broker.pid
    federation.renew(authority=True)
    broker.reload(kit_of(federation, "coordinator"))  # the kit held the old authority until now
    assert serial() != before and broker.pid == pid
    together(_nothing, kit_of(federation, "north"))


async def _nothing(*_: object) -> None:
    pass


def test_the_broker_of_another_process_takes_changes_over(federation: FederationFolder, broker: Broker) -> None:
    """What the verbs do while `fedloom serve` runs."""
    assert running(broker.folder) == broker.pid
    federation.add(["east"])
    assert reload_running(kit_of(federation, "coordinator"))
    together(_nothing, kit_of(federation, "east"))
    broker.stop()
    assert running(broker.folder) is None
    assert not reload_running(kit_of(federation, "coordinator"))


def test_a_reload_that_fails_is_told(federation: FederationFolder, broker: Broker) -> None:
    (broker.folder / "tls.pem").write_text("not a certificate")
    with pytest.raises(RunError, match="did not take its new settings over") as told:
        broker.reload()
    assert "tls" in str(told.value) and broker.pid is not None


# --- its life ---

CHILD = """
import sys, time
from pathlib import Path
from fedloom.engines.remote.broker import Broker
from fedloom.engines.remote.kit import read_kit
broker = Broker(read_kit(Path(sys.argv[1])))
broker.start()
print(broker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal to the child of a dead parent is Linux's")
def test_it_ends_with_the_process_that_started_it_even_when_that_is_killed(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit = kit_of(federation, "coordinator")
    parent = subprocess.Popen([sys.executable, "-c", CHILD, str(kit.folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    assert server.is_running() and server.status() != psutil.STATUS_ZOMBIE
    with monkeypatch.context() as patch:
        patch.setattr(broker_module, "_FAREWELL", 0.1)
        with pytest.raises(UsageError, match=r"the broker of this kit runs already \(process \d+\)"):
            Broker(kit).start()
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    again = Broker(kit)
    again.start()  # waits for the former one to be gone
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
    again.stop()
    assert again.pid is None


def test_a_server_that_dies_is_noticed_and_what_was_stored_is_there_again(
    federation: FederationFolder, broker: Broker
) -> None:
    async def store(coordinator: Node) -> None:
        js = coordinator.client.jetstream()
        await js.add_stream(name="ASK", subjects=["fl.ask.>"])
        await js.publish("fl.ask.north.1", b"kept")

    async def look(coordinator: Node) -> None:
        message = await coordinator.client.jetstream().get_last_msg("ASK", "fl.ask.north.1")
        assert message.data == b"kept"

    together(store, broker.kit)
    assert broker.failure() is None and broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while broker.failure() is None:
        assert time.monotonic() < end
        time.sleep(0.01)
    broker.start()
    assert broker.failure() is None
    together(look, broker.kit)


@pytest.mark.parametrize(("asked", "gigabytes"), [("", 14), (", monitor: {port}, disk: 3", 3)])
def test_what_is_stored_is_flushed_and_bounded_and_watched_only_when_asked(
    tmp_path: Path, asked: str, gigabytes: int
) -> None:
    port = free_port()
    broker = started(new_federation(tmp_path, more=asked.format(port=port)))
    found: list[int] = []

    async def ask(coordinator: Node) -> None:
        found.append((await coordinator.client.jetstream().account_info()).limits.max_storage)

    try:
        assert broker.pid is not None
        listening = [c.laddr for c in psutil.Process(broker.pid).net_connections("tcp") if c.status == "LISTEN"]
        assert len(listening) == (2 if asked else 1) and {address.ip for address in listening} == {"127.0.0.1"}
        together(ask, broker.kit)
        assert found == [gigabytes * 10**9]
        if asked:
            with urlopen(f"http://127.0.0.1:{port}/jsz", timeout=5) as page:
                assert json.load(page)["config"]["sync_always"] is True
        assert "sync_interval: always" in (broker.folder / "broker.conf").read_text()
    finally:
        broker.stop()


# --- the organisation's own cluster ---


def test_the_accounts_work_in_a_cluster_of_the_organisation(tmp_path: Path) -> None:
    from fedloom.engines.remote.definition import read_plan

    port = free_port()
    plan = tmp_path / "fed.yaml"
    plan.write_text(f'name: hospitals\nbroker: {{urls: ["tls://127.0.0.1:{port}"]}}\nclients: [north]\n')
    federation = FederationFolder.create(read_plan(plan), tmp_path / "hospitals", tmp_path)
    broker = started(federation)
    assert broker.external and broker.pid is None and not (federation.coordinator / "broker").exists()
    cluster = federation.path / "cluster"
    (tmp_path / "own.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{store_dir: "store"}}\nmax_payload: 1114112\n'
        f'tls {{cert_file: "{cluster}/tls.pem", key_file: "{cluster}/tls.key", handshake_first: auto}}\n'
        f"accounts {{\n  theirs: {{users: [{{user: a, password: b}}]}}\n"
        f"  include '{cluster.relative_to(tmp_path)}/accounts.conf'\n}}\n"
    )
    server = subprocess.Popen([str(find_server()), "-c", "own.conf"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while True:
            try:
                check_reach(kit_of(federation, "north"))
                break
            except UsageError:
                assert time.monotonic() < end
                time.sleep(0.05)

        async def scene(coordinator: Node, north: Node) -> None:
            await coordinator.client.jetstream().add_stream(name="ANS_north", subjects=["fl.ans.north.>"])
            (told,) = await north.ask("fl.ans.north.1", b"x")
            assert b'"seq":1' in told.data

        together(scene, kit_of(federation, "coordinator"), kit_of(federation, "north"))
    finally:
        server.terminate()
        server.wait(10)


# --- secrets ---


def test_no_secret_is_in_what_the_broker_writes(federation: FederationFolder, broker: Broker, tmp_path: Path) -> None:
    kits = [kit_of(federation, name) for name in ("coordinator", "operator", "north")]
    together(_nothing, *kits)
    strange = tmp_path / "strange.nk"
    authority.write_secret(strange, authority.new_nkey()[0])
    refused(kits[2], nkeys_seed=str(strange))
    secrets = [kit.seed() for kit in kits] + [strange.read_text()]
    secrets += (federation.coordinator / "broker" / "tls.key").read_text().splitlines()[1:-1]
    for file in (*broker.folder.glob("broker.*"), broker.folder / "accounts.conf", federation.path / "federation.json"):
        text = file.read_text()
        assert not any(secret in text for secret in secrets), file
    assert "authentication error" in broker.log.read_text()  # it is the log of this broker
    assert not any(secret in str(connect_options(kit)) + repr(kit) for kit in kits for secret in secrets)
    assert stat.S_IMODE((broker.folder / "store").stat().st_mode) == 0o700
