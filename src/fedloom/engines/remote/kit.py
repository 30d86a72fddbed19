"""An enrolment kit: what one party needs to take part, as a folder that only it may read.

kit.json    the federation, the party's role and name, where the broker is, and public keys
ca.pem      the federation's authority
broker-ca.pem  who signed the broker's certificate, where that is not the authority
secret.nk   the party's secret Ed25519 seed (mode 600); it never leaves its file but to sign
broker/     the coordinator's only: what the broker is started with

`add`, `revoke` and `renew` issue the coordinator's and the operator's kits again in place. Who holds a kit elsewhere copies
kit.json, ca.pem and broker/ over it; a coordinator that runs notices (`Kit.changed`).
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError

from fedloom.config.section import Section
from fedloom.engines.remote.authority import certificate_facts, fingerprint, identity, public_key, write_secret
from fedloom.engines.remote.definition import Port
from fedloom.engines.remote.permissions import inbox
from fedloom.errors import UsageError
from fedloom.files import write_atomic

__all__ = ["BrokerSettings", "Kit", "Role", "connect_options", "read_kit", "require_federation", "write_kit"]

Role = Literal["coordinator", "operator", "client"]
PublicKey = Annotated[str, Field(pattern=r"^U[A-Z2-7]{55}$")]

KIT_FILE, AUTHORITY_FILE, BROKER_AUTHORITY_FILE, SEED_FILE = "kit.json", "ca.pem", "broker-ca.pem", "secret.nk"
_AGAIN = "Ask who runs the federation for the kit again"


class BrokerSettings(Section):
    """How the coordinator starts the broker."""

    listen: str
    port: Port
    monitor: Port | None
    disk: float | None


class Kit(Section):
    """A party's kit, as it was read; the secret stays in its file."""

    format: Literal[1] = 1
    federation: str
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Digest of the authority: the same for every party of a federation, and for no other."""
    role: Role
    name: str
    key: PublicKey
    urls: Annotated[list[str], Field(min_length=1)]
    coordinator: PublicKey
    operator: PublicKey
    operator_name: str
    clients: dict[str, PublicKey] = Field({})
    """Every client's public key by name; in the kits of the coordinator and the operator."""
    issued: str
    """When, in UTC; with each issue another."""
    broker: BrokerSettings | None = None
    """In the coordinator's kit, unless the broker is the organisation's own."""
    _folder: Path = PrivateAttr()

    @property
    def folder(self) -> Path:
        """Where the kit is."""
        return self._folder

    @property
    def authority(self) -> Path:
        """The certificate to trust the broker by."""
        other = self._folder / BROKER_AUTHORITY_FILE
        return other if other.is_file() else self._folder / AUTHORITY_FILE

    def seed(self) -> str:
        """The party's secret seed ("SU..."), read from its file.

        Raises UsageError when the file is gone, damaged, another party's, or open to others.
        """
        return _read_seed(self._folder, self.key).decode()

    def changed(self) -> Kit | None:
        """The kit as it is in its folder now, when it has been issued again since it was read."""
        kit = read_kit(self._folder, self.role)
        require_federation(kit, self.id)
        return None if kit == self else kit


def read_kit(folder: Path, role: Role | None = None) -> Kit:
    """Read a kit and check it: whole, of one federation, its key its own and kept secret, its certificate valid now.

    Raises UsageError, which never shows the secret.
    """
    kit = _read_facts(folder)
    where = str(folder)
    if role is not None and kit.role != role:
        fix = {"coordinator": "`fedloom serve`", "operator": "`fedloom run`", "client": "`fedloom join`"}[kit.role]
        what = f"this is the kit of {_party(kit.role, kit.name)}, and a kit of {_party(role)} is needed"
        raise UsageError(what, where=where, fix=f"This one is for {fix}")
    authority = _read(folder / AUTHORITY_FILE)
    if identity(authority, where=str(folder / AUTHORITY_FILE)) != kit.id:
        what = "kit.json and ca.pem are of different federations"
        raise UsageError(what, where=where, fix="Do not mix the files of two kits; unpack one into a new folder")
    facts = certificate_facts(authority, where=str(folder / AUTHORITY_FILE))
    renew = "Whoever runs the federation renews it (`fedloom federation renew --authority`) and sends the new ca.pem"
    facts.check("the certificate of the federation's authority", where=where, fix=renew)
    _read_seed(folder, kit.key)
    return kit


def _read_facts(folder: Path) -> Kit:
    path = folder / KIT_FILE
    if folder.is_file():
        fix = f"Unpack it first: tar -xzf {folder.name}" if folder.name.endswith(".tar.gz") else "Name the kit's folder"
        raise UsageError("this is a file, and a kit is a folder", where=str(folder), fix=fix)
    if not path.is_file():
        raise UsageError("this is not a kit: there is no kit.json", where=str(folder), fix="Name the kit's folder")
    try:
        kit = Kit.model_validate_json(_read(path))
    except ValidationError as error:
        detail = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, detail["loc"]))
        why = f"{place}: {detail['msg']}" if place else detail["msg"]
        raise UsageError("the kit is damaged, or of another version", where=str(path), why=why, fix=_AGAIN) from None
    kit._folder = folder
    expected = {"coordinator": kit.coordinator, "operator": kit.operator}.get(kit.role, kit.key)
    if kit.key != expected:
        raise UsageError("the kit is damaged: its key is not that of its role", where=str(path), fix=_AGAIN)
    return kit


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"this file of the kit cannot be read: {error.strerror}"
        raise UsageError(what, where=str(path), fix=_AGAIN) from None


def _read_seed(folder: Path, key: str) -> bytes:
    path = folder / SEED_FILE
    seed = _read(path).strip()
    mode = stat.S_IMODE(path.stat().st_mode)
    if os.name == "posix" and mode & 0o077:
        what = f"others may read the secret key (mode {mode:o})"
        raise UsageError(
            what, where=str(path), fix=f"Run: chmod 600 {path}; and have the key replaced if they may have"
        )
    try:
        own = public_key(seed)
    except ValueError:
        raise UsageError("the secret key is damaged", where=str(path), fix=_AGAIN) from None
    if own != key:
        what = f"the secret key is another party's: kit.json names {fingerprint(key)}, this is {fingerprint(own)}"
        raise UsageError(what, where=str(path), fix="Do not mix the files of two kits; unpack one into a new folder")
    return seed


def _party(role: Role, name: str = "") -> str:
    return f"the client {name!r}" if role == "client" and name else f"{'a' if role == 'client' else 'the'} {role}"


def write_kit(folder: Path, kit: Kit, authority: bytes, *, broker_authority: bytes | None, seed: bytes | None) -> None:
    """Write a kit (folders of mode 700, the secret of mode 600), or issue it again: the seed, when None, stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if seed is not None:
        write_secret(folder / SEED_FILE, seed + b"\n")
    write_atomic(folder / AUTHORITY_FILE, authority)
    if broker_authority is not None:
        write_atomic(folder / BROKER_AUTHORITY_FILE, broker_authority)
    write_atomic(folder / KIT_FILE, kit.model_dump_json(indent=1) + "\n")


def require_federation(kit: Kit, id: str) -> None:
    """Raise UsageError unless the kit is of the federation with this id."""
    if kit.id != id:
        what = f"this kit is of another federation, {kit.federation!r} ({kit.id[:16]}); {id[:16]} is needed"
        raise UsageError(what, where=str(kit.folder), fix="Use the kit that came from this federation")


def connect_options(kit: Kit) -> dict[str, Any]:
    """What nats-py's `connect` needs: servers, TLS, the key's file, inboxes, the name.

    TLS begins before the broker's first word. Otherwise that word, which anyone on the way could write, decides whether there is
    TLS at all: nats-py goes on in the clear when it says that none is needed. nats-py itself signs the broker's challenge, and
    reads the seed anew for it; no secret is in the options.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=str(kit.authority))
    return {
        "servers": list(kit.urls),
        "name": f"{kit.role} {kit.name}" if kit.role == "client" else kit.name,
        "tls": context,
        "tls_handshake_first": True,
        "nkeys_seed": str(kit.folder / SEED_FILE),
        "inbox_prefix": inbox(kit.name),
    }
