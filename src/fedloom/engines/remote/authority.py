"""A federation's own certificate authority, the certificate of its broker, and the keys of its parties.

The authority signs one kind of certificate, the broker's, which proves to every party that it talks to the broker of its own
federation. A party proves itself with an Ed25519 key in the form of an nkey, which both logs in to the broker and signs messages.
A federation is known by the SHA-256 digest of its authority's public key, which outlives renewals of the certificate.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

import nkeys
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedloom.errors import UsageError

__all__ = [
    "AUTHORITY_DAYS",
    "BROKER_DAYS",
    "CertificateFacts",
    "certificate_facts",
    "check_pair",
    "day",
    "fingerprint",
    "identity",
    "issue_certificate",
    "new_authority",
    "new_nkey",
    "public_key",
    "renew_authority",
    "write_secret",
]

AUTHORITY_DAYS = 3650
BROKER_DAYS = 397
"""What browsers and proxies accept at most of a server's certificate."""

_BACKDATED = timedelta(hours=1)  # clocks that differ by less than this do not matter


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says of itself; times in UTC."""

    not_before: datetime
    not_after: datetime
    hosts: tuple[str, ...]

    def check(self, what: str, *, where: str, fix: str) -> None:
        """Raise UsageError when it has expired, or when this machine's clock stands before its beginning."""
        now = datetime.now(UTC)
        if now > self.not_after:
            raise UsageError(f"{what} expired on {day(self.not_after)}", where=where, fix=fix)
        if now < self.not_before:
            why = f"the clock of this machine says {day(now)}"
            clock = "Set this machine's clock, best by NTP; or, if it is right, that of the machine that issued it"
            raise UsageError(f"{what} is valid only from {day(self.not_before)}", where=where, why=why, fix=clock)


def day(moment: datetime) -> str:
    """A moment as people write it: "2026-11-21 17:45 UTC"."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def new_authority(federation: str) -> tuple[bytes, bytes]:
    """The private key and the certificate of a new authority, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _private_pem(key), _authority_certificate(key, federation)


def renew_authority(key: bytes, federation: str) -> bytes:
    """A new certificate for the same key: the federation stays the same, and the broker's certificate stays valid."""
    return _authority_certificate(_load_key(key), federation)


def _authority_certificate(key: ec.EllipticCurvePrivateKey, federation: str) -> bytes:
    name = _name(f"{federation}, a fedloom federation")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _certificate(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issue_certificate(
    authority_key: bytes, authority: bytes, hosts: Sequence[str], days: int = BROKER_DAYS
) -> tuple[bytes, bytes]:
    """A new private key for the broker, and a certificate that names these hosts and addresses, as PEM."""
    issuer, signer = x509.load_pem_x509_certificate(authority), _load_key(authority_key)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate(_name(hosts[0][:64]), issuer.subject, key.public_key(), days)
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)]), False),
        (signed_by, False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return _private_pem(key), builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - _BACKDATED).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(**which: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: which.get(name, False) for name in names.split()})


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)  # it is ours
    return key


def certificate_facts(pem: bytes, *, where: str) -> CertificateFacts:
    """The validity of a certificate and the hosts it names; raises UsageError when it cannot be read."""
    certificate = _load_certificate(pem, where)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    except x509.ExtensionNotFound:
        hosts = []
    return CertificateFacts(certificate.not_valid_before_utc, certificate.not_valid_after_utc, tuple(hosts))


def identity(pem: bytes, *, where: str) -> str:
    """The federation's id: SHA-256 of its authority's public key, in hexadecimal."""
    key = _load_certificate(pem, where).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def check_pair(certificate: bytes, key: bytes, *, where: str, fix: str) -> None:
    """Raise UsageError unless the private key is the certificate's."""
    theirs = _load_certificate(certificate, where).public_key()
    try:
        ours = serialization.load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageError("the broker's private key cannot be read", where=where, fix=fix) from None
    if ours != theirs:
        raise UsageError("the broker's private key is not that of its certificate", where=where, fix=fix)


def _load_certificate(pem: bytes, where: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        fix = "Copy the file again from where it was issued"
        raise UsageError("this is not a certificate in PEM form", where=where, fix=fix) from None


def new_nkey() -> tuple[bytes, str]:
    """The secret seed ("SU...") and the public key ("U...") of a new party."""
    seed: bytes = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
    return seed, public_key(seed)


def public_key(seed: bytes) -> str:
    """The public key of a seed; raises ValueError, which does not show the seed, when it is none."""
    try:
        prefix, raw = nkeys.decode_seed(bytearray(seed))
        whole = prefix == nkeys.PREFIX_BYTE_USER and nkeys.encode_seed(bytes(raw), prefix) == seed  # the check sum, too
    except (nkeys.NkeysError, ValueError):
        whole = False
    if not whole:
        raise ValueError("not the seed of a user's nkey") from None
    public: bytes = nkeys.from_seed(bytearray(seed)).public_key
    return public.decode()


def fingerprint(public: str) -> str:
    """A public key in short, for people to compare: the first 64 bits of its SHA-256, in groups of four digits."""
    digest = sha256(public.encode()).hexdigest()[:16]
    return ":".join(digest[at : at + 4] for at in range(0, 16, 4))


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read (mode 600), whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
