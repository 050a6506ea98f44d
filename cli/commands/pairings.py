"""pairings list, approve, deny, revoke: which nodes may be given work, and what (protocol section 10)."""

from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from cli import render
from cli.client import Json
from cli.exits import CliError, ExitCode
from cli.session import JsonOption, Session, of, print_json
from models.capabilities import VERSION, Descriptor, managed_allowlist

app = typer.Typer(help="Which nodes may be given work.", no_args_is_help=True)

PairingArgument = Annotated[
    str, typer.Argument(metavar="PAIRING", help="Number of the pairing, or its node, environment or label.")
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Kept with the decision.", show_default=False)
]


class Trust(StrEnum):
    """Trust levels of the protocol."""

    LOCAL = "local"
    REMOTE = "remote"


@app.command("list")
def list_(
    ctx: typer.Context,
    status: Annotated[
        str | None,
        typer.Option("--status", help="Only these, such as awaiting_human or revoked.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List pairings, newest request first."""
    session = of(ctx)
    nothing = "no node has asked to be paired" if status is None else f"no pairing is {status}"
    session.listed(_pairings(session, status), _table, nothing, as_json)


@app.command()
def approve(
    ctx: typer.Context,
    pairing: PairingArgument,
    capability: Annotated[
        list[str] | None,
        typer.Option(
            "--capability",
            help="What the node may be asked for; may be repeated. Otherwise what it offers of the allowlist for "
            "managed desktops.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        Trust | None,
        typer.Option(
            "--trust", help="Otherwise local for a managed desktop, remote for others.", show_default=False
        ),
    ] = None,
    reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Approve a pairing that waits, or that an operator has refused."""
    session = of(ctx)
    found = _one(session, pairing)
    node = found["node"]
    if capability:
        allowed = [{"id": name, "version": VERSION} for name in capability]
    else:
        offered = [Descriptor.model_validate(descriptor) for descriptor in node["capabilities"]]
        allowed = [descriptor.model_dump() for descriptor in managed_allowlist(offered)]
        if not allowed:
            raise CliError(
                f"node {node['node_id']} offers nothing of the allowlist for managed desktops; name what it may be "
                "asked for with --capability",
                ExitCode.USAGE,
                "invalid_request",
            )
    level = trust or (Trust.LOCAL if node.get("managed_desktop") else Trust.REMOTE)
    body: Json = {"trust_level": level.value, "capability_allowlist": allowed}
    _decide(session, found, "approve", body | _with(reason), "approved", as_json)


@app.command()
def deny(
    ctx: typer.Context, pairing: PairingArgument, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """Deny a pairing that waits."""
    session = of(ctx)
    _decide(session, _one(session, pairing), "deny", _with(reason), "denied", as_json)


@app.command()
def revoke(
    ctx: typer.Context, pairing: PairingArgument, reason: ReasonOption = None, as_json: JsonOption = False
) -> None:
    """End an approved pairing: the node's socket is closed, and nothing is dispatched to it until approved again."""
    session = of(ctx)
    _decide(session, _one(session, pairing), "revoke", _with(reason), "revoked", as_json)


def _with(reason: str | None) -> Json:
    return {} if reason is None else {"reason": reason}


def _pairings(session: Session, status: str | None = None) -> list[Json]:
    return list(
        session.api.call("GET", "/pairings", params={"status": status} if status else None)["pairings"]
    )


def _one(session: Session, named: str) -> Json:
    """The pairing meant: by its number, whole node id, environment id, or label."""
    known = _pairings(session)
    found = [p for p in known if str(p["pairing_id"]) == named]
    found = found or [p for p in known if named in _names(p)]
    if len(found) != 1:
        problem = "no pairing is meant by that" if not found else "several pairings are meant; give a number"
        code = ExitCode.NOT_FOUND if not found else ExitCode.USAGE
        raise CliError(f"{named!r}: {problem}; see `desktopctl pairings list`", code)
    return found[0]


def _names(pairing: Json) -> set[str]:
    node = pairing["node"]
    managed = node.get("managed_desktop") or {}
    return {node["node_id"], node.get("label"), managed.get("environment_id")} - {None, ""}


def _decide(session: Session, found: Json, verb: str, body: Json, expected: str, as_json: bool) -> None:
    number = found["pairing_id"]
    answer = session.api.call("POST", f"/pairings/{number}/{verb}", about=f"pairing {number}", body=body)
    decided: Json = answer["pairing"]
    if as_json:
        print_json(decided)
    else:
        session.say(f"pairing {number} of node {decided['node']['node_id']} is {decided['status']}")
    if decided["status"] != expected:
        raise CliError(
            f"pairing {number} is {decided['status']} and cannot be {expected} from there", ExitCode.CONFLICT
        )


def _table(items: list[Json]) -> Table:
    table = render.grid("PAIRING", "STATUS", "NODE", "LABEL", "ENVIRONMENT", "MAY", "BY", "REQUESTED")
    for item in items:
        node, review = item["node"], item.get("latest_review") or {}
        managed = node.get("managed_desktop") or {}
        table.add_row(
            str(item["pairing_id"]),
            render.clean(item["status"]),
            render.clean(node["node_id"])[:16],
            render.clean(node.get("label") or "-"),
            render.clean(managed.get("environment_id") or "-")[:8],
            str(len(item["capability_allowlist"])),
            render.clean(review.get("reviewer_id") or "-"),
            render.ago(item.get("requested_at")),
        )
    return table
