"""Federations and kits on disk: what is made, who may read it, what changes, and what is said of what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from federation_tools import kit_of, new_federation

from fedloom.engines.remote import authority
from fedloom.engines.remote.enrolment import FederationFolder
from fedloom.engines.remote.kit import connect_options, read_kit, require_federation
from fedloom.errors import UsageError


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    return new_federation(tmp_path)


# --- what is made ---


def test_kits_hold_what_their_party_needs_and_no_more(federation: FederationFolder) -> None:
    kits = {name: kit_of(federation, name) for name in ("coordinator", "operator", "north", "south")}
    keys = {name: kit.key for name, kit in kits.items()}
    assert len(set(keys.values())) == 4
    for name, kit in kits.items():
        assert (kit.name, kit.federation, kit.id, kit.urls) == (
            name,
            "hospitals",
            federation.register.id,
            federation.register.plan.urls,
        )
        assert (kit.coordinator, kit.operator) == (keys["coordinator"], keys["operator"])
        assert authority.public_key(kit.seed().encode()) == kit.key
        knows = {"north": keys["north"], "south": keys["south"]} if name in ("coordinator", "operator") else {}
        assert kit.clients == knows and (kit.broker is not None) == (name == "coordinator")
    assert kits["north"].id == authority.identity(kits["south"].authority.read_bytes(), where="")
    assert not list((federation.path / "kits").rglob("ca.key"))


def test_a_stored_kit_is_the_same_kit(federation: FederationFolder, tmp_path: Path) -> None:
    kit = kit_of(federation, "coordinator")
    moved = shutil.copytree(kit.folder, tmp_path / "moved")
    again = read_kit(moved)
    assert again.model_dump() == kit.model_dump() and again.seed() == kit.seed() and again.folder == moved
    assert kit.changed() is None


def test_the_packed_kit_is_the_kit(federation: FederationFolder, tmp_path: Path) -> None:
    for name, files in (
        ("north", {"kit.json", "ca.pem", "secret.nk"}),
        ("coordinator", {"kit.json", "ca.pem", "secret.nk", "broker/tls.pem", "broker/tls.key"}),
    ):
        packed = federation.path / "kits" / f"{name}.tar.gz"
        with tarfile.open(packed) as archive:
            archive.extractall(tmp_path, filter="tar")
        folder = tmp_path / f"hospitals-{name}"
        assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == files
        assert read_kit(folder).seed() == kit_of(federation, name).seed()
        assert stat.S_IMODE(packed.stat().st_mode) == 0o600 and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_secrets_can_be_read_by_their_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        federation = new_federation(tmp_path)
        federation.add(["west"])
        federation.renew()
    finally:
        os.umask(before)
    secret = [
        path
        for path in federation.path.rglob("*")
        if path.name in ("ca.key", "tls.key", "secret.nk") or path.suffix == ".gz"
    ]
    assert len(secret) == 1 + 1 + 5 + 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    closed = [
        federation.path,
        federation.path / "authority",
        *(path for path in (federation.path / "kits").rglob("*") if path.is_dir()),
    ]
    assert {stat.S_IMODE(path.stat().st_mode) for path in closed} == {0o700}
    assert (federation.path / ".gitignore").read_text() == "*\n"


def test_nothing_is_overwritten_and_nothing_half_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = new_federation(tmp_path)
    before = (federation.path / "federation.json").read_bytes()
    with pytest.raises(UsageError, match="the folder exists, and nothing is overwritten"):
        FederationFolder.create(federation.register.plan, federation.path, tmp_path)
    assert (federation.path / "federation.json").read_bytes() == before

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedloom.engines.remote.enrolment.write_kit", fail)
    with pytest.raises(UsageError, match="the folder cannot be written: No space left on device"):
        FederationFolder.create(federation.register.plan, tmp_path / "second", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"fed.yaml", "hospitals"}


# --- what changes ---


def test_adding_keeps_the_keys_of_the_others(federation: FederationFolder) -> None:
    before = {name: kit_of(federation, name) for name in ("coordinator", "operator", "north", "south")}
    federation.add(["west", "east"])
    for name, kit in before.items():
        now = kit_of(federation, name)
        assert (now.key, now.seed()) == (kit.key, kit.seed())
        assert (kit.changed() is not None) == (name in ("coordinator", "operator"))
    informed = kit_of(federation, "coordinator")
    assert informed.clients == kit_of(federation, "operator").clients
    assert informed.clients["west"] == kit_of(federation, "west").key and set(informed.clients) == {
        "north",
        "south",
        "west",
        "east",
    }
    assert FederationFolder.open(federation.path).register == federation.register


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["North"], "the name 'North' is taken, by a client, 'north'"),
        (["operator"], "is taken, by the operator"),
        (["Coordinator"], "is taken, by the coordinator"),
        (["west", "West"], "is taken, by this very command"),
        (["../x"], "'../x' is not a name"),
        (["west", "a*b"], r"'a\*b' is not a name"),
    ],
)
def test_names_that_cannot_be_added(federation: FederationFolder, names: list[str], says: str) -> None:
    before = (federation.path / "federation.json").read_bytes()
    with pytest.raises(UsageError, match=says):
        federation.add(names)
    assert (federation.path / "federation.json").read_bytes() == before
    assert not (federation.path / "kits" / "west").exists()


def test_revoking_leaves_no_key_and_no_kit(federation: FederationFolder) -> None:
    kit = kit_of(federation, "north")
    with pytest.raises(UsageError, match=r"no client 'nort' is enrolled.*Did you mean 'north'"):
        federation.revoke(["nort"])
    with pytest.raises(UsageError, match="no client 'operator' is enrolled"):
        federation.revoke(["operator"])
    federation.revoke(["north"])
    for name in ("coordinator", "operator"):
        assert set(kit_of(federation, name).clients) == {"south"}
    assert not kit.folder.exists() and not (federation.path / "kits" / "north.tar.gz").exists()
    (gone,) = federation.register.revoked
    assert (gone.name, gone.key) == ("north", kit.key) and gone.revoked is not None
    federation.add(["north"])  # the name again, with another key
    assert kit_of(federation, "north").key != kit.key


def test_renewing_the_authority_keeps_the_federation_and_its_kits(federation: FederationFolder, tmp_path: Path) -> None:
    old = shutil.copytree(kit_of(federation, "north").folder, tmp_path / "old")
    before = (old / "ca.pem").read_bytes()
    federation.renew(authority=True)
    now = kit_of(federation, "north")
    assert now.authority.read_bytes() != before and now.id == federation.register.id == read_kit(old).id
    assert now.seed() == read_kit(old).seed()
    for kit in (now, read_kit(old)):  # either trusts the new certificate of the broker
        context: ssl.SSLContext = connect_options(kit)["tls"]
        assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate((federation.coordinator / "broker" / "tls.pem").read_bytes())
    for pem in (before, now.authority.read_bytes()):
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(pem))


def test_a_host_that_is_none_is_refused_before_anything_changes(federation: FederationFolder) -> None:
    before = (federation.coordinator / "broker" / "tls.pem").read_bytes()
    with pytest.raises(UsageError, match="'a b' is not a host's name or address"):
        federation.renew(authority=True, hosts=["fl.example.org", "a b"])
    assert (federation.coordinator / "broker" / "tls.pem").read_bytes() == before
    assert kit_of(federation, "north").authority.read_bytes() == (federation.path / "authority" / "ca.pem").read_bytes()


def test_a_disk_that_is_full_is_told(federation: FederationFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedloom.engines.remote.enrolment.write_atomic", fail)
    for change in (lambda: federation.add(["west"]), lambda: federation.revoke(["north"]), federation.renew):
        with pytest.raises(UsageError, match="the folder cannot be written: No space left on device"):
            change()
    assert set(kit_of(federation, "coordinator").clients) == {"north", "south"}


def test_a_kit_that_was_sent_and_deleted_is_not_made_again(federation: FederationFolder) -> None:
    """No folder without a secret appears for a client, and the coordinator's lists are still issued."""
    for name in ("north", "coordinator"):
        (federation.path / "kits" / f"{name}.tar.gz").unlink()
    shutil.rmtree(federation.path / "kits" / "north")
    (federation.coordinator / "secret.nk").unlink()
    federation.renew(authority=True)
    federation.add(["west"])
    assert (
        not (federation.path / "kits" / "north").exists() and not (federation.path / "kits" / "north.tar.gz").exists()
    )
    assert "west" in json.loads((federation.coordinator / "kit.json").read_text())["clients"]
    assert (
        not federation.has_secret("coordinator")
        and not federation.has_secret("north")
        and federation.has_secret("south")
    )


def test_two_changes_at_once_are_both_made(federation: FederationFolder) -> None:
    other = FederationFolder.open(federation.path)
    federation.add(["west"])
    other.add(["east"])  # it was opened before
    assert set(kit_of(federation, "coordinator").clients) == {"north", "south", "west", "east"}


# --- kits that are wrong ---


def _mode(kit: Path) -> None:
    (kit / "secret.nk").chmod(0o640)


def _no_secret(kit: Path) -> None:
    (kit / "secret.nk").unlink()


def _damaged_secret(kit: Path) -> None:
    seed = (kit / "secret.nk").read_text()
    (kit / "secret.nk").write_text(seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:])


def _other_secret(kit: Path) -> None:
    authority.write_secret(kit / "secret.nk", authority.new_nkey()[0])


def _not_ascii(kit: Path) -> None:
    authority.write_secret(kit / "secret.nk", b"\xff\xfe secret")


def _no_json(kit: Path) -> None:
    (kit / "kit.json").unlink()


def _bad_json(kit: Path) -> None:
    (kit / "kit.json").write_text("{")


def _changed(**changes: object) -> Callable[[Path], None]:
    def change(kit: Path) -> None:
        facts = json.loads((kit / "kit.json").read_text())
        (kit / "kit.json").write_text(json.dumps(facts | changes))

    return change


def _authority(content: bytes) -> Callable[[Path], None]:
    return lambda kit: (kit / "ca.pem").write_bytes(content) and None


def _foreign(kit: Path) -> None:
    (kit / "ca.pem").write_bytes(authority.new_authority("banks")[1])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_mode, r"others may read the secret key \(mode 640\).*chmod 600"),
        (_no_secret, "secret.nk: this file of the kit cannot be read: No such file"),
        (_damaged_secret, "the secret key is damaged"),
        (_not_ascii, "the secret key is damaged"),
        (_other_secret, "the secret key is another party's"),
        (_no_json, "this is not a kit: there is no kit.json"),
        (_bad_json, "the kit is damaged, or of another version"),
        (_changed(format=2), "the kit is damaged, or of another version. format: Input should be 1"),
        (_changed(more=1), "the kit is damaged, or of another version. more: Extra inputs"),
        (_changed(key="U" + "A" * 55), "the secret key is another party's"),
        (_changed(role="operator"), "the kit is damaged: its key is not that of its role"),
        (_changed(id="0" * 64), "kit.json and ca.pem are of different federations"),
        (_foreign, "kit.json and ca.pem are of different federations"),
        (_authority(b"damaged"), "this is not a certificate in PEM form"),
    ],
)
def test_a_kit_that_is_wrong(federation: FederationFolder, damage: Callable[[Path], None], says: str) -> None:
    folder = federation.path / "kits" / "north"
    seed = (folder / "secret.nk").read_text().strip()
    damage(folder)
    with pytest.raises(UsageError, match=says) as told:
        read_kit(folder, "client")
    error: BaseException | None = told.value
    while error is not None:  # nor in what the error came from
        assert seed[2:18] not in str(error) + repr(error) and "\n" not in str(told.value)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_another_partys_kit_and_another_federations(federation: FederationFolder, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError,
        match=r"this is the kit of the client 'north', and a kit of the coordinator is needed.*`fedloom join`",
    ):
        read_kit(federation.path / "kits" / "north", "coordinator")
    with pytest.raises(
        UsageError, match=r"this is the kit of the operator, and a kit of a client is needed.*`fedloom run`"
    ):
        read_kit(federation.path / "kits" / "operator", "client")
    with pytest.raises(UsageError, match=r"Unpack it first: tar -xzf north\.tar\.gz"):
        read_kit(federation.path / "kits" / "north.tar.gz")
    other = new_federation(tmp_path / "other", name="banks")
    require_federation(kit_of(federation, "north"), federation.register.id)
    with pytest.raises(UsageError, match=r"this kit is of another federation, 'hospitals'"):
        require_federation(kit_of(federation, "north"), other.register.id)


@pytest.mark.parametrize(
    ("days", "says"),
    [
        (-authority.AUTHORITY_DAYS - 1, r"certificate of the federation's authority expired on.*renew --authority"),
        (2, r"authority is valid only from .* The clock of this machine says .* NTP"),
    ],
)
def test_an_authority_that_is_not_valid_now(
    federation: FederationFolder, monkeypatch: pytest.MonkeyPatch, days: int, says: str
) -> None:
    issued = datetime.now(UTC) + timedelta(days=days)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return issued

    with monkeypatch.context() as patch:
        patch.setattr(authority, "datetime", Clock)
        federation.renew(authority=True)
    with pytest.raises(UsageError, match=says):
        kit_of(federation, "north")


def test_clocks_that_differ_by_minutes_do_not_matter(federation: FederationFolder) -> None:
    for facts in federation.certificates().values():
        assert facts.not_before <= datetime.now(UTC) - timedelta(minutes=59)
        facts.check("it", where="here", fix="")


def test_the_options_of_a_connection(federation: FederationFolder) -> None:
    options = connect_options(kit_of(federation, "north"))
    assert options["inbox_prefix"] == "_INBOX_north" and options["tls_handshake_first"] is True
    assert options["servers"] == federation.register.plan.urls and options["name"] == "client north"
    assert kit_of(federation, "north").seed() not in str(options)
    (authorities,) = options["tls"].get_ca_certs()
    assert authorities["subject"] == ((("commonName", "hospitals, a fedloom federation"),),)


def test_public_keys_are_told_apart_by_their_fingerprints() -> None:
    seeds = [authority.new_nkey() for _ in range(20)]
    assert len({authority.fingerprint(public) for _, public in seeds}) == 20
    for seed, public in seeds:
        assert authority.public_key(seed) == public and len(authority.fingerprint(public)) == 19
        for wrong in (seed[:-1], b"", b"SU", public.encode(), seed.replace(b"SU", b"SA", 1)):
            with pytest.raises(ValueError, match="not the seed of a user's nkey") as told:
                authority.public_key(wrong)
            assert told.value.__suppress_context__ or told.value.__context__ is None
