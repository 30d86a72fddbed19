"""Whether the broker of a kit can be reached, and if not, why: one paragraph for each cause."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime
from urllib.parse import urlsplit

from fedloom.engines.remote.authority import certificate_facts, day
from fedloom.engines.remote.kit import Kit, connect_options
from fedloom.errors import UsageError

__all__ = ["check_reach", "explain"]

# OpenSSL's reasons (x509_vfy.h) by number: the words of the library differ between versions.
_NOT_YET, _EXPIRED, _UNKNOWN, _OTHER_HOST = {9}, {10}, {7, 18, 19, 20, 21}, {62, 64}


def check_reach(kit: Kit, timeout: float = 5.0) -> str:
    """The first of the kit's urls where a broker of its federation answers, with TLS; nothing is sent to it.

    Raises UsageError that says what is wrong with the last one when there is none.
    """
    context: ssl.SSLContext = connect_options(kit)["tls"]
    refusal: UsageError | None = None
    for url in kit.urls:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        try:
            with (
                socket.create_connection((parts.hostname, parts.port), timeout=timeout) as plain,
                context.wrap_socket(plain, server_hostname=parts.hostname),
            ):
                return url
        except OSError as error:  # among them ssl.SSLError, time-outs, and names that do not resolve
            refusal = explain(kit, error, url)
    assert refusal is not None  # a kit has a url
    raise refusal


def explain(kit: Kit, error: BaseException, url: str | None = None) -> UsageError:
    """What an error of connecting means, in words: from the socket, TLS, or nats-py."""
    where = url or ", ".join(kit.urls)
    said = str(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate(kit, error, where)
    if isinstance(error, ssl.SSLError):
        what = "there is a server, but it does not begin with TLS"
        fix = "Check the port; a cluster of your own needs `handshake_first: auto` in its `tls` section"
        return UsageError(what, where=where, why=f"{error.reason or said}", fix=fix)
    if "authorization violation" in said.lower() or "authentication" in said.lower():
        what = f"the broker does not know the key of {kit.name!r}, or no longer"
        fix = "Ask who runs the federation: `fedloom federation status` shows who is enrolled, `add` makes a new kit"
        return UsageError(what, where=where, fix=fix)
    if isinstance(error, socket.gaierror):
        fix = "Check this machine's DNS, and the name in kit.json"
        return UsageError("the broker's name cannot be resolved", where=where, why=error.strerror, fix=fix)
    if isinstance(error, ConnectionRefusedError):
        fix = "Start it with `fedloom serve`, or check the port and the firewall"
        return UsageError("no broker listens there", where=where, fix=fix)
    if isinstance(error, TimeoutError):
        fix = "Check that this machine may dial out to that port (firewall, VPN)"
        return UsageError("the broker does not answer in time", where=where, fix=fix)
    fix = "Check the network, and that `fedloom serve` runs"
    return UsageError("the broker cannot be reached", where=where, why=said or type(error).__name__, fix=fix)


def _certificate(kit: Kit, error: ssl.SSLCertVerificationError, where: str) -> UsageError:
    clock = f"The clock of this machine says {day(datetime.now(UTC))}"
    code = error.verify_code
    if code in _EXPIRED:
        fix = f"{clock}; if that is right, who runs the federation runs `fedloom federation renew`"
        return UsageError("the broker's certificate has expired", where=where, fix=fix)
    if code in _NOT_YET:
        what = "the broker's certificate is not valid yet: the clocks of the two machines are apart"
        return UsageError(what, where=where, why=clock, fix="Set the clocks, best by NTP")
    if code in _UNKNOWN:
        what = "the broker there is not of this kit's federation: its certificate was signed by another authority"
        ours = certificate_facts(kit.authority.read_bytes(), where=str(kit.authority))
        why = f"this kit is of {kit.federation!r} ({kit.id[:16]}), whose authority is from {day(ours.not_before)}"
        return UsageError(what, where=where, why=why, fix="Use the kit that came from the federation of this broker")
    if code in _OTHER_HOST:
        fix = "Add the name to `hosts` of the federation: `fedloom federation renew --host NAME`"
        return UsageError("the broker's certificate is for other names than this", where=where, fix=fix)
    return UsageError("the broker's certificate is refused", where=where, why=error.verify_message)
