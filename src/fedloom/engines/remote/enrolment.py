"""The folder of a federation, from which its parties are enrolled; it stays with who runs the federation.

federation.json      the register: who is enrolled, under which public key, and who was
authority/           ca.pem, and the key that signs (mode 600): needed by `renew` alone, so it may be kept elsewhere
kits/NAME/           the kit of each party, and kits/NAME.tar.gz, the same to send; to be deleted here once it has arrived
kits/coordinator/    what `fedloom serve` is run with: here, or copied to the machine of the coordinator
cluster/             for the organisation's own cluster: accounts.conf to include, and a certificate, if it is to use ours
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from fedloom.config.section import Section
from fedloom.engines.remote import authority as ca
from fedloom.engines.remote.definition import FederationPlan, is_host, name_mistake
from fedloom.engines.remote.kit import (
    AUTHORITY_FILE,
    BROKER_AUTHORITY_FILE,
    KIT_FILE,
    SEED_FILE,
    BrokerSettings,
    Kit,
    PublicKey,
    Role,
    write_kit,
)
from fedloom.engines.remote.permissions import COORDINATOR, accounts
from fedloom.engines.remote.settings import BROKER_FOLDER, CERTIFICATE_FILE, KEY_FILE, MAX_PAYLOAD, listen_address
from fedloom.errors import UsageError, nearest
from fedloom.files import atomic_folder, write_atomic

__all__ = ["FederationFolder", "Party", "Register"]

REGISTER_FILE = "federation.json"
_KEY, _CERTIFICATE = Path("authority", "ca.key"), Path("authority", "ca.pem")
_CLUSTER, _ACCOUNTS = "cluster", "accounts.conf"


class Party(Section):
    """Who is, or was, enrolled."""

    name: str
    role: Role
    key: PublicKey
    added: str
    revoked: str | None = None


class Register(Section):
    """All that a federation consists of, but its secrets."""

    format: Literal[1] = 1
    plan: FederationPlan
    id: str
    parties: list[Party]
    revoked: list[Party] = Field([])
    hosts: list[str] = Field(min_length=1)

    def of(self, role: Role) -> dict[str, str]:
        """Public keys by name."""
        return {party.name: party.key for party in self.parties if party.role == role}


class FederationFolder:
    """A federation on disk. Every change is made under a lock, and the register is written before what follows from it."""

    def __init__(self, path: Path, register: Register) -> None:
        self.path, self.register = path, register

    @property
    def coordinator(self) -> Path:
        """The coordinator's kit."""
        return self.path / "kits" / COORDINATOR

    @classmethod
    def create(cls, plan: FederationPlan, path: Path, base: Path) -> FederationFolder:
        """Make a new federation's folder, whole or not at all; relative paths of the plan start from `base`.

        Raises UsageError when there is something at `path`.
        """
        if path.exists():
            fix = "Choose another with --out; or `fedloom federation add` and `renew` change one that exists"
            raise UsageError("the folder exists, and nothing is overwritten", where=str(path), fix=fix)
        theirs = None
        if plan.broker.ca is not None:
            theirs = (base / plan.broker.ca).read_bytes()
            ca.certificate_facts(theirs, where=plan.broker.ca)
        key, certificate = ca.new_authority(plan.name)
        now = _now()
        roles: list[tuple[str, Role]] = [(COORDINATOR, "coordinator"), (plan.operator, "operator")]
        roles += [(client, "client") for client in plan.clients]
        seeds = {name: ca.new_nkey() for name, _ in roles}
        parties = [Party(name=name, role=role, key=seeds[name][1], added=now) for name, role in roles]
        id = ca.identity(certificate, where=str(path))
        try:
            with atomic_folder(path) as aside:
                aside.chmod(0o700)
                made = cls(aside, Register(plan=plan, id=id, parties=parties, hosts=plan.hosts))
                for part in ("authority", "kits"):
                    (aside / part).mkdir(mode=0o700)
                (aside / ".gitignore").write_text("*\n")  # secrets are not to be committed by mistake
                ca.write_secret(aside / _KEY, key)
                write_atomic(aside / _CERTIFICATE, certificate)
                if theirs is not None:
                    write_atomic(aside / "authority" / BROKER_AUTHORITY_FILE, theirs)
                made._save()
                made._issue_certificate()
                made._issue(made.register.parties, {name: seed for name, (seed, _) in seeds.items()})
        except OSError as error:
            raise UsageError(f"the folder cannot be written: {error.strerror}", where=str(path)) from error
        return cls(path, made.register)

    @classmethod
    def open(cls, path: Path) -> FederationFolder:
        """The federation of a folder; raises UsageError when there is none in it."""
        file = path / REGISTER_FILE
        try:
            register = Register.model_validate_json(file.read_bytes())
        except OSError as error:
            fix = "Name the folder that `fedloom federation init` made: --in FOLDER"
            raise UsageError(f"no federation is here: {error.strerror}", where=str(file), fix=fix) from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise UsageError("the register is damaged, or of another version", where=str(file), why=why) from None
        return cls(path, register)

    def add(self, names: Sequence[str]) -> None:
        """Enrol clients: a key and a kit for each; the keys of others stay. Raises UsageError for names that cannot be."""
        with self._locked():
            taken = {p.name.lower(): _who(p) for p in self.register.parties}
            for name in names:
                if mistake := name_mistake(name, taken):
                    raise UsageError(mistake.what, fix=mistake.fix)
                taken[name.lower()] = "this very command"
            now = _now()
            made = {name: ca.new_nkey() for name in names}
            new = [Party(name=name, role="client", key=made[name][1], added=now) for name in names]
            self._change(parties=[*self.register.parties, *new])
            self._issue([*new, *self._informed()], {name: seed for name, (seed, _) in made.items()})

    def revoke(self, names: Sequence[str]) -> None:
        """Take clients off the broker's and the coordinator's lists, and delete what is left of their kits here."""
        with self._locked():
            clients = self.register.of("client")
            for name in names:
                if name not in clients:
                    fix = nearest(name, list(clients)) if clients else "There is no client"
                    raise UsageError(f"no client {name!r} is enrolled", where=str(self.path), fix=fix)
            gone = [p for p in self.register.parties if p.name in names]
            now = _now()
            left = [p for p in self.register.parties if p.name not in names]
            past = [p.model_copy(update={"revoked": now}) for p in gone]
            self._change(parties=left, revoked=[*self.register.revoked, *past])
            self._issue(self._informed(), {})
            for name in names:
                shutil.rmtree(self.path / "kits" / name, ignore_errors=True)
                self._archive(name).unlink(missing_ok=True)

    def renew(self, *, authority: bool = False, hosts: Sequence[str] = ()) -> None:
        """Issue the broker a new key and certificate, with these further hosts; or the authority a new certificate as well.

        The authority keeps its key, so that kits with the old certificate work until that one expires.
        Raises UsageError for what is not a host.
        """
        if wrong := [host for host in hosts if not is_host(host)]:
            fix = "Write it without a scheme and a port: fl.example.org or 192.0.2.7"
            raise UsageError(f"{wrong[0]!r} is not a host's name or address", where="--host", fix=fix)
        with self._locked():
            if authority:
                renewed = ca.renew_authority(self._authority_key(), self.register.plan.name)
                write_atomic(self.path / _CERTIFICATE, renewed)
            self._change(hosts=list(dict.fromkeys([*self.register.hosts, *hosts])))
            self._issue_certificate()
            self._issue(self.register.parties if authority else self._informed(), {})

    def certificates(self) -> dict[str, ca.CertificateFacts]:
        """The validity of the authority's certificate and of the broker's, where it is ours."""
        files = {"authority": self.path / _CERTIFICATE, "broker": self._certificate_folder() / CERTIFICATE_FILE}
        return {
            what: ca.certificate_facts(file.read_bytes(), where=str(file))
            for what, file in files.items()
            if file.is_file()
        }

    def has_secret(self, name: str) -> bool:
        """Whether a party's secret is still in this folder."""
        return (self.path / "kits" / name / SEED_FILE).is_file() or self._archive(name).is_file()

    def _informed(self) -> list[Party]:
        """Whose kits hold the list of clients."""
        return [party for party in self.register.parties if party.role != "client"]

    def _change(self, **changes: object) -> None:
        self.register = self.register.model_copy(update=changes)
        self._save()

    def _save(self) -> None:
        write_atomic(self.path / REGISTER_FILE, self.register.model_dump_json(indent=1, exclude_unset=False) + "\n")

    def _authority_key(self) -> bytes:
        try:
            return (self.path / _KEY).read_bytes()
        except OSError as error:
            fix = "Bring the authority's key back to where it was made"
            raise UsageError(
                f"the authority's key cannot be read: {error.strerror}", where=str(self.path / _KEY), fix=fix
            ) from None

    def _certificate_folder(self) -> Path:
        own = self.register.plan.broker.urls
        return self.path / _CLUSTER if own else self.coordinator / BROKER_FOLDER

    def _issue_certificate(self) -> None:
        """A certificate for the broker, unless the organisation's cluster has one."""
        if self.register.plan.broker.ca is not None:
            return
        folder, key = self._certificate_folder(), self._authority_key()
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        private, certificate = ca.issue_certificate(key, (self.path / _CERTIFICATE).read_bytes(), self.register.hosts)
        ca.write_secret(folder / KEY_FILE, private)
        write_atomic(folder / CERTIFICATE_FILE, certificate)

    def _issue(self, parties: Iterable[Party], seeds: dict[str, bytes]) -> None:
        """Write kits, and pack those that are to be sent; and the accounts for the organisation's own cluster."""
        other = self.path / "authority" / BROKER_AUTHORITY_FILE
        for party in parties:
            folder = self.path / "kits" / party.name
            if party.role == "client" and party.name not in seeds and not (folder / SEED_FILE).is_file():
                continue  # its kit has been sent, and deleted here; all that may change of it is ca.pem
            write_kit(
                folder,
                self._kit(party),
                (self.path / _CERTIFICATE).read_bytes(),
                broker_authority=other.read_bytes() if other.is_file() else None,
                seed=seeds.get(party.name),
            )
            if (folder / SEED_FILE).is_file():
                self._pack(folder, party.name)
        if self.register.plan.broker.urls:
            (self.path / _CLUSTER).mkdir(mode=0o700, exist_ok=True)
            write_atomic(self.path / _CLUSTER / _ACCOUNTS, self._fragment())

    def _kit(self, party: Party) -> Kit:
        plan = self.register.plan
        (coordinator,) = self.register.of("coordinator").values()
        ((name, operator),) = self.register.of("operator").items()
        settings = None
        if party.role == "coordinator" and not plan.broker.urls:
            listen = listen_address(plan.broker)
            broker = plan.broker
            settings = BrokerSettings(listen=listen, port=broker.port, monitor=broker.monitor, disk=broker.disk)
        return Kit(
            federation=plan.name,
            id=self.register.id,
            role=party.role,
            name=party.name,
            key=party.key,
            urls=plan.urls,
            coordinator=coordinator,
            operator=operator,
            operator_name=name,
            clients=self.register.of("client") if party.role != "client" else {},
            issued=_now(),
            broker=settings,
        )

    def _fragment(self) -> str:
        plan = self.register.plan
        (coordinator,) = self.register.of("coordinator").values()
        ((name, operator),) = self.register.of("operator").items()
        clients = self.register.of("client")
        certificate = " with the tls.pem and tls.key beside this file" if plan.broker.ca is None else ""
        lines = [
            f"# The parties of the federation {plan.name!r}, as accounts. Every server of the cluster includes it,",
            "#   accounts { include 'accounts.conf' }",
            f"# and needs JetStream, `max_payload: {MAX_PAYLOAD}`, and `tls {{ handshake_first: auto, ... }}`{certificate}.",
            "# Written again by `fedloom federation add` and `revoke`; reload the servers then, twice: what a new account imports",
            "# works only from the second time on.",
        ]
        return "\n".join([*lines, accounts(plan.name, coordinator, (name, operator), clients, disk=plan.broker.disk)])

    def _archive(self, name: str) -> Path:
        return self.path / "kits" / f"{name}.tar.gz"

    def _pack(self, folder: Path, name: str) -> None:
        """The kit as one file (mode 600), to be unpacked as a folder that only its owner may read."""
        files = [folder / file for file in (KIT_FILE, AUTHORITY_FILE, BROKER_AUTHORITY_FILE, SEED_FILE)]
        files += [folder / BROKER_FOLDER / file for file in (CERTIFICATE_FILE, KEY_FILE)]
        root = f"{self.register.plan.name}-{name}"
        aside = self._archive(f".{name}")
        ca.write_secret(aside, b"")
        with tarfile.open(aside, "w:gz") as archive:
            for part in (root, f"{root}/{BROKER_FOLDER}"):
                if part == root or (folder / BROKER_FOLDER).is_dir():
                    entry = tarfile.TarInfo(part)
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o700
                    archive.addfile(entry)
            for file in filter(Path.is_file, files):
                entry = tarfile.TarInfo(f"{root}/{file.relative_to(folder).as_posix()}")
                entry.size, entry.mode, entry.mtime = file.stat().st_size, 0o600, int(file.stat().st_mtime)
                with file.open("rb") as content:
                    archive.addfile(entry, content)
        aside.replace(self._archive(name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One change at a time, of what is on the disk now."""
        try:
            with FileLock(self.path / ".lock"):
                self.register = FederationFolder.open(self.path).register
                yield
        except OSError as error:
            raise UsageError(f"the folder cannot be written: {error.strerror}", where=str(self.path)) from error


def _who(party: Party) -> str:
    return f"a client, {party.name!r}" if party.role == "client" else f"the {party.role}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
