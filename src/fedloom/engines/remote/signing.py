"""Signatures: every message names its federation, its direction and its client, and is verified before anything of it is parsed.

A sealed message is a signature of 64 bytes, then the content. What is signed (Ed25519, RFC 8032) is

    "fedloom message 1", federation, direction, client, content

each field led by its length (8 bytes, big endian), so that no two lists of fields have the same bytes: a message of one federation,
direction or client is not one of another.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256
from typing import Literal

import nkeys
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from fedloom.errors import FedloomError, UsageError

__all__ = ["Direction", "Forged", "Signer", "unseal", "verify_key"]

Direction = Literal["ask", "news", "answer", "beat", "fetch", "lease", "name"]
"""What a message is: `news` is what the coordinator tells of asks; a `name` is no message: unguessable subjects come from it."""

_DOMAIN = b"fedloom message 1"
_SIGNATURE = 64
_USER = 20 << 3  # the prefix byte of a public nkey that begins with U


class Forged(FedloomError):
    """A message was not signed by whom it has to be from, or not for this federation, direction and client."""


def _canonical(federation: str, direction: Direction, client: str, content: bytes) -> bytes:
    fields = (_DOMAIN, federation.encode(), direction.encode(), client.encode(), content)
    return b"".join(len(field).to_bytes(8, "big") + field for field in fields)


def verify_key(public: str) -> VerifyKey:
    """The key that verifies what the owner of a public nkey (`U...`) signed.

    Raises UsageError when it is not such a key.
    """
    try:
        raw = base64.b32decode(public + "=" * (-len(public) % 8))
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 35 or raw[0] != _USER or nkeys.crc16(bytearray(raw[:33])) != int.from_bytes(raw[33:], "little"):
        raise UsageError(
            f"{public!r} is not a public nkey", fix="take it from the kit: 56 letters and digits that begin with U"
        )
    return VerifyKey(raw[1:33])


class Signer:
    """Signs for one party of one federation."""

    def __init__(self, federation: str, seed: str) -> None:
        try:
            _, raw = nkeys.decode_seed(seed.encode())
        except (nkeys.NkeysError, ValueError):
            raise UsageError(
                "the seed of the key cannot be read", fix="take it from the kit: it begins with SU"
            ) from None
        self.federation, self._key = federation, SigningKey(raw)

    @property
    def verify_key(self) -> VerifyKey:
        """Verifies what this party signs."""
        return self._key.verify_key

    def seal(self, direction: Direction, client: str, content: bytes) -> bytes:
        """The signature, then the content."""
        return self._sign(direction, client, content) + content

    def name(self, client: str, content: str) -> str:
        """A name, 32 hexadecimal digits, that follows from the content, and that only the owner of this key can tell beforehand.

        Whoever could tell under which subject a message will be stored could be there first.
        """
        return sha256(self._sign("name", client, content.encode())).hexdigest()[:32]

    def _sign(self, direction: Direction, client: str, content: bytes) -> bytes:
        return self._key.sign(_canonical(self.federation, direction, client, content)).signature


def unseal(key: VerifyKey, federation: str, direction: Direction, client: str, message: bytes) -> bytes:
    """The content of a sealed message.

    Raises Forged when the signature is not the key's over just this federation, direction and client.
    """
    signature, content = message[:_SIGNATURE], message[_SIGNATURE:]
    try:
        key.verify(_canonical(federation, direction, client, content), signature)
    except (BadSignatureError, ValueError):
        why = f"its signature is not that of this federation, for {direction} messages, of this client"
        raise Forged("a message is not what it claims to be", where=f"client {client!r}", why=why) from None
    return content
