"""The file that names the parties of a federation: `fedloom federation init fed.yaml`.

name: hospitals
broker: {host: fl.example.org}          # or, for a cluster that exists: {urls: ["tls://nats.example.org:4222"], ca: cluster.pem}
clients: [north, south]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, Field, ValidationError

from fedloom.config.document import Document, Place
from fedloom.config.load import read_document
from fedloom.config.section import Section
from fedloom.config.translate import translate
from fedloom.engines.remote.permissions import COORDINATOR
from fedloom.errors import ConfigError, Mistake, nearest

__all__ = ["BrokerPlan", "FederationPlan", "Port", "is_host", "name_mistake", "read_plan"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_RESERVED = frozenset({"con", "prn", "aux", "nul"})  # names that no file may have on Windows

Port = Annotated[int, Field(ge=1, le=65535)]


class BrokerPlan(Section):
    """Where the broker is: one that `fedloom serve` starts (host), or the organisation's own cluster (urls)."""

    host: str | None = Field(None, description="Name or address under which every client reaches the broker.")
    port: Port = Field(4222, description="Port that the broker listens on.")
    hosts: list[str] = Field([], description="Further names and addresses of the broker, for its certificate.")
    listen: str | None = Field(
        None,
        description="Address to listen on; that of `host` when it is this machine alone, else every address of the machine.",
    )
    monitor: Port | None = Field(
        None, description="Port of the broker's monitoring page, on 127.0.0.1 only; none if left out."
    )
    disk: Annotated[float, Field(ge=1)] | None = Field(
        None, description="Gigabytes that the broker may store; 10, and 2 for each client, when left out."
    )
    urls: list[str] = Field([], description="The organisation's own cluster, as tls://host:port; no broker is started.")
    ca: str | None = Field(
        None, description="PEM file of who signed that cluster's certificate; else it uses the one that is made here."
    )


class FederationPlan(Section):
    """The parties of a federation."""

    name: str = Field(description="Names the federation, and its folder.")
    broker: BrokerPlan
    clients: list[str] = Field(description="The clients' names.")
    operator: str = Field("operator", description="The name of who submits runs and looks after them.")

    @property
    def urls(self) -> list[str]:
        """What every party dials, in order."""
        broker = self.broker
        if broker.urls:
            return list(broker.urls)
        return [f"tls://{f'[{host}]' if ':' in host else host}:{broker.port}" for host in self.hosts]

    @property
    def hosts(self) -> list[str]:
        """The names and addresses that the broker's certificate must hold."""
        if self.broker.urls:
            return [urlsplit(url).hostname or "" for url in self.broker.urls]
        assert self.broker.host is not None  # or the plan was refused
        return list(dict.fromkeys([self.broker.host, *self.broker.hosts]))


def read_plan(path: Path) -> FederationPlan:
    """Read a federation file; raises ConfigError with every mistake in it."""
    begin = "Begin with name:, broker: and clients:"
    try:
        document = read_document(path)
    except ConfigError as error:
        own = [replace(m, fix=begin) if m.what == "the file is empty" else m for m in error.mistakes]
        raise ConfigError(error.file, own) from None
    data = _known(document, document.data, FederationPlan, ())
    if isinstance(data.get("broker"), dict):
        data["broker"] = _known(document, data["broker"], BrokerPlan, ("broker",))
    given = dict(data)
    for key, example in {"name": "hospitals", "broker": "{host: fl.example.org}", "clients": "[north, south]"}.items():
        if key not in given:
            document.report((key,), "this key is required, and missing", f"Add it, such as `{key}: {example}`")
            given[key] = {"name": "unnamed", "broker": {"host": "unnamed"}, "clients": ["unnamed"]}[key]
    try:
        plan = FederationPlan.model_validate(given)
    except ValidationError as error:
        faulty = translate(error, FederationPlan, document)
    else:
        faulty = set()
        _check_broker(plan.broker, path.resolve().parent, document)
    _check_names(data, faulty, document)
    if document.mistakes:
        raise ConfigError(str(path), sorted(dict.fromkeys(document.mistakes), key=lambda mistake: mistake.line))
    return plan


def _known(document: Document, data: dict[str, Any], section: type[BaseModel], place: Place) -> dict[str, Any]:
    """The keys that exist; the others are reported."""
    valid = list(section.model_fields)
    for key in data:
        if key not in valid:
            document.report((*place, key), "there is no such key", nearest(key, valid))
    return {key: value for key, value in data.items() if key in valid}


def _check_names(data: dict[str, Any], faulty: set[Place], document: Document) -> None:
    """Names become folders, subjects and accounts: they must be plain, and each a party's own."""
    named: list[tuple[Place, Any]] = [(("name",), data.get("name")), (("operator",), data.get("operator", "operator"))]
    clients = data.get("clients")
    named += [(("clients", i), client) for i, client in enumerate(clients if isinstance(clients, list) else [])]
    taken = {COORDINATOR: "the coordinator"}
    for place, name in named:
        if not isinstance(name, str) or place in faulty:
            continue
        others = {} if place == ("name",) else taken
        if mistake := name_mistake(name, others):
            document.report(place, mistake.what, mistake.fix)
        elif place != ("name",):
            taken[name.lower()] = "the operator" if place == ("operator",) else f"a client, {name!r}"


def name_mistake(name: str, taken: dict[str, str]) -> Mistake | None:
    """What is wrong with a party's name, if anything; taken: who has which name, in lower case."""
    if not _NAME.fullmatch(name) or name.lower() in _RESERVED:
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:64]
        fix = f"Write {plain}" if _NAME.fullmatch(plain) and plain.lower() not in _RESERVED else None
        rule = "1 to 64 letters (a to z), digits, hyphens and underscores, beginning with a letter or digit"
        return Mistake("", 0, f"{name!r} is not a name: {rule}", fix)
    if name.lower() in taken:
        what = f"the name {name!r} is taken, by {taken[name.lower()]}"
        return Mistake("", 0, what, "Give every party a name of its own; large and small letters do not differ")
    return None


def _check_broker(broker: BrokerPlan, base: Path, document: Document) -> None:
    place: Place = ("broker",)
    if bool(broker.host) == bool(broker.urls):
        what = "give `host`, of a broker to be started, or `urls`, of a cluster that exists"
        document.report(place, what, "Such as `broker: {host: fl.example.org}`")
    named: Sequence[tuple[Place, str | None]] = [((*place, "host"), broker.host), ((*place, "listen"), broker.listen)]
    for at, host in [*named, *(((*place, "hosts", i), host) for i, host in enumerate(broker.hosts))]:
        if host is not None and not is_host(host):
            fix = "Write it without a scheme and a port: fl.example.org or 192.0.2.7"
            document.report(at, f"{host!r} is not a host's name or address", fix)
    for i, url in enumerate(broker.urls):
        if not _is_url(url):
            document.report((*place, "urls", i), f"{url!r} is not of the form tls://host:port", "TLS is required")
    for key in ("hosts", "listen", "monitor", "port"):
        if broker.urls and key in broker.model_fields_set:
            document.report(
                (*place, key), "this is for a broker that is started here", "Take it out, or take out `urls`"
            )
    if broker.ca is not None and not broker.urls:
        document.report((*place, "ca"), "this is for a cluster that exists", "Take it out, or give its `urls`")
    elif broker.ca is not None and not (base / broker.ca).is_file():
        document.report((*place, "ca"), f"there is no file {broker.ca!r}", "Its path starts from this file's folder")
    if broker.monitor is not None and broker.monitor == broker.port:
        document.report((*place, "monitor"), "this is the port of the broker", "Choose another, such as 8222")


def is_host(host: str) -> bool:
    """Whether a text is the name or the address of a host."""
    try:
        ip_address(host)
    except ValueError:
        labels = host.removesuffix(".").split(".")
        numeric = all(label.isdigit() for label in labels)  # an address with a mistake in it
        return len(host) <= 253 and not numeric and all(_LABEL.fullmatch(label) for label in labels)
    return True


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = not (parts.username or parts.password or parts.path or parts.query or parts.fragment)
        return parts.scheme == "tls" and plain and parts.port is not None and is_host(parts.hostname or "")
    except ValueError:
        return False
