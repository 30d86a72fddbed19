"""`fedloom federation`: who takes part in a real federation, their keys and certificates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fedloom.engines.remote.enrolment import FederationFolder

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Enrol the parties of a real federation: keys, certificates, kits.")

_Names = Annotated[list[str], typer.Argument(metavar="NAME ...", help="Names of clients.", show_default=False)]
_In = Annotated[
    Path, typer.Option("--in", metavar="FOLDER", help="The federation's folder, or the one that it alone is in.")
]
_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FED.yaml", help="Names the parties.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder; else one beside the file, named after it.")
    ] = None,
    as_json: _AsJson = False,
) -> None:
    """Make a federation: its authority, the broker's certificate, a key and an enrolment kit for every party.

    Example: fedloom federation init fed.yaml
    """
    _need_extra()
    from fedloom.engines.remote.definition import read_plan
    from fedloom.engines.remote.enrolment import FederationFolder

    plan = read_plan(file)
    made = FederationFolder.create(plan, out or file.parent / plan.name, file.resolve().parent)
    if as_json:
        _print(_facts(made))
        return
    kits = made.path / "kits"
    typer.echo(f"{made.path}: the federation {plan.name!r}, {made.register.id[:16]}")
    typer.echo(
        f"  give each client its kit: {kits}/NAME.tar.gz; a kit holds a secret, so send it as you would a password,"
    )
    typer.echo(f"  and delete it here when it has arrived. The operator's is {kits}/{plan.operator}.tar.gz")
    if plan.broker.urls:
        typer.echo(f"  give the cluster's owner {made.path}/cluster/accounts.conf: its first lines say how to use it")
    typer.echo(f"Then: fedloom serve {made.coordinator}")


@app.command()
def add(names: _Names, folder: _In = Path(), as_json: _AsJson = False) -> None:
    """Enrol further clients; a broker that runs here takes them over at once.

    Example: fedloom federation add east west
    """
    found = _open(folder)
    found.add(names)
    _tell(found, as_json, *(f"{name}: {found.path / 'kits' / name}.tar.gz" for name in names))


@app.command()
def revoke(names: _Names, folder: _In = Path(), as_json: _AsJson = False) -> None:
    """Take clients out: the broker cuts them off and refuses their keys, and the coordinator no longer asks them.

    Example: fedloom federation revoke east
    """
    found = _open(folder)
    found.revoke(names)
    _tell(found, as_json, *(f"{name}: revoked" for name in names))


@app.command()
def renew(
    authority: Annotated[bool, typer.Option(help="Renew the authority's certificate too; its key stays.")] = False,
    host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name or address of the broker; repeatable.")
    ] = None,
    folder: _In = Path(),
    as_json: _AsJson = False,
) -> None:
    """Give the broker a new key and certificate.

    Example: fedloom federation renew
    """
    found = _open(folder)
    found.renew(authority=authority, hosts=host or [])
    expiry = [f"{what}: valid until {facts.not_after:%Y-%m-%d}" for what, facts in found.certificates().items()]
    if authority:
        expiry.append("Send every client its new ca.pem before the old one expires; its key stays")
    _tell(found, as_json, *expiry)


@app.command()
def status(folder: _In = Path(), as_json: _AsJson = False) -> None:
    """Show who is enrolled, the fingerprints of their keys, and when the certificates expire.

    Example: fedloom federation status --in hospitals
    """
    facts = _facts(_open(folder))
    if as_json:
        _print(facts)
        return
    typer.echo(f"{facts['federation']}  {facts['id'][:16]}  {', '.join(facts['urls'])}")
    for party in facts["parties"]:
        state = f"revoked {party['revoked'][:10]}" if party["revoked"] else f"since {party['added'][:10]}"
        kit = (
            "" if party["revoked"] or party["role"] == "coordinator" or not party["kit"] else "  its kit is still here"
        )
        typer.echo(f"  {party['role']:<12} {party['name']:<24} {party['fingerprint']}  {state}{kit}")
    for what, certificate in facts["certificates"].items():
        typer.echo(
            f"  certificate of the {what}: until {certificate['not_after'][:10]}, {certificate['days_left']} days"
        )
    typer.echo(f"  broker: {facts['broker']}")


def _need_extra() -> None:
    from fedloom.errors import UsageError

    try:
        import cryptography
        import nats
        import nkeys  # noqa: F401
    except ImportError as error:
        what = f"a real federation needs the package {(error.name or '').partition('.')[0]}"
        raise UsageError(what, fix="Install it: pip install 'fedloom[remote]'") from error
    del cryptography, nats


def _open(folder: Path) -> FederationFolder:
    """The federation of a folder, or the only one in it."""
    _need_extra()
    from fedloom.engines.remote.enrolment import REGISTER_FILE, FederationFolder
    from fedloom.errors import UsageError

    if not (folder / REGISTER_FILE).is_file():
        inside = sorted(path.parent for path in folder.glob(f"*/{REGISTER_FILE}"))
        if len(inside) > 1:
            fix = f"Say which: {' or '.join(f'--in {path}' for path in inside)}"
            raise UsageError("there are several federations here", where=str(folder), fix=fix)
        folder = inside[0] if inside else folder
    return FederationFolder.open(folder)


def _tell(found: FederationFolder, as_json: bool, *lines: str) -> None:
    """Have a broker that runs here take the change over, and say what was done and what is left to do."""
    from fedloom.engines.remote.broker import reload_running, running
    from fedloom.engines.remote.kit import read_kit
    from fedloom.engines.remote.settings import BROKER_FOLDER

    folder = found.coordinator / BROKER_FOLDER
    taken = running(folder) is not None and reload_running(read_kit(found.coordinator))
    if as_json:
        _print(_facts(found))
        return
    for line in lines:
        typer.echo(line)
    if found.register.plan.broker.urls:
        typer.echo(f"Give {found.path}/cluster to the cluster's owner again, to be reloaded there")
    elif taken:
        typer.echo("The broker has taken it over")
    else:
        typer.echo(
            f"No broker runs here. Where the coordinator's kit is kept elsewhere, copy {found.coordinator} there"
        )


def _facts(found: FederationFolder) -> dict[str, Any]:
    from datetime import UTC, datetime

    from fedloom.engines.remote.authority import fingerprint
    from fedloom.engines.remote.broker import running
    from fedloom.engines.remote.settings import BROKER_FOLDER

    register, now = found.register, datetime.now(UTC)
    pid = running(found.coordinator / BROKER_FOLDER)
    own = "the organisation's own" if register.plan.broker.urls else "not running on this machine"
    return {
        "federation": register.plan.name,
        "id": register.id,
        "folder": str(found.path),
        "urls": register.plan.urls,
        "broker": f"running, process {pid}" if pid else own,
        "parties": [
            {
                "name": party.name,
                "role": party.role,
                "key": party.key,
                "fingerprint": fingerprint(party.key),
                "added": party.added,
                "revoked": party.revoked,
                "kit": party.revoked is None and found.has_secret(party.name),
            }
            for party in [*register.parties, *register.revoked]
        ],
        "certificates": {
            what: {
                "not_before": facts.not_before.isoformat(),
                "not_after": facts.not_after.isoformat(),
                "days_left": (facts.not_after - now).days,
                "hosts": list(facts.hosts),
            }
            for what, facts in found.certificates().items()
        },
    }


def _print(facts: dict[str, Any]) -> None:
    from fedloom.cli.console import print_json

    print_json(facts)
