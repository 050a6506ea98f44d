"""takeover, takeover-sessions, screenshot."""

import base64
import binascii
import sys
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cli import render
from cli.client import Api, Json, environment_path
from cli.exits import CliError, ExitCode
from cli.session import EnvironmentArgument, JsonOption, Session, of, print_json

SessionArgument = Annotated[
    str, typer.Argument(metavar="SESSION", help="Id, or the beginning of one, of a takeover session.")
]
_TTL = {"min": 10, "max": 86400}

takeover_sessions = typer.Typer(
    help="The open takeover sessions of an environment: list, revoke, extend.", no_args_is_help=True
)


def takeover(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    view_only: Annotated[
        bool, typer.Option("--view-only", help="Show the desktop, and drop all input to it.")
    ] = False,
    ttl: Annotated[
        int | None,
        typer.Option(
            help="Seconds it lives; the installation's default otherwise.", show_default=False, **_TTL
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Open a takeover session: prints an address that gives a browser the desktop while it lives.

    Whoever has the address has the desktop.
    """
    session = of(ctx)
    environment_id = session.resolve(environment)
    about = f"environment {environment_id}"
    body: Json = {"view_only": True} if view_only else {}
    if ttl is not None:
        body["ttl_seconds"] = ttl
    answer = session.api.call(
        "POST", f"{environment_path(environment_id)}/takeover-token", about=about, body=body
    )
    url = str(answer["entry_url"])
    if as_json:
        print_json({name: value for name, value in answer.items() if name != "status"})
    else:
        typer.echo(render.clean(url))
        session.err.print(f"lives until {render.clean(answer.get('expires_at'))}", style="dim")
    if open_browser and not (url.startswith(("http://", "https://")) and webbrowser.open(url)):
        raise CliError(f"no browser could be opened for {about}: open the address by hand", ExitCode.FAILED)


@takeover_sessions.command("list")
def list_sessions(ctx: typer.Context, environment: EnvironmentArgument, as_json: JsonOption = False) -> None:
    """List the sessions that are open, newest first."""
    session = of(ctx)
    found = _sessions(session.api, session.resolve(environment))
    if as_json:
        print_json(found)
        return
    table = render.grid("SESSION", "GENERATION", "INPUT", "OPENED BY", "OPENED", "ENDS")
    for item in found:
        table.add_row(
            render.short(item["session_id"]),
            render.clean(item["generation"]),
            "none" if item["view_only"] else "yes",
            render.clean(item["created_by"]),
            render.ago(item["created_at"]),
            render.ago(item["expires_at"]),
        )
    session.out.print(table)


@takeover_sessions.command("revoke")
def revoke_session(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    takeover_session: SessionArgument,
    as_json: JsonOption = False,
) -> None:
    """End a session: its link is dead, its open viewers are disconnected."""
    _change(of(ctx), environment, takeover_session, "revoke", None, as_json)


@takeover_sessions.command("extend")
def extend_session(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    takeover_session: SessionArgument,
    ttl: Annotated[
        int | None,
        typer.Option(
            help="Seconds it is to live from now on; the installation's default otherwise.",
            show_default=False,
            **_TTL,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Have a session live longer; its open viewers stay connected."""
    _change(
        of(ctx), environment, takeover_session, "extend", {} if ttl is None else {"ttl_seconds": ttl}, as_json
    )


def screenshot(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; `-` for standard output.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take a screenshot through the environment's paired node."""
    session = of(ctx)
    environment_id = session.resolve(environment)
    detail = session.api.environment(environment_id)
    node_id = detail.get("node_id")
    if not node_id or detail.get("status") != "running":
        raise CliError(
            f"environment {environment_id} is {detail.get('status')}: only a running one has a node to ask; "
            f"try `desktopctl start {render.short(environment_id)} --wait`",
            ExitCode.CONFLICT,
            "conflict",
        )
    image, evidence = take(session.api, str(node_id))
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(image)
        return
    name = f"desktop-{render.short(environment_id)}-{datetime.now(UTC).astimezone():%Y%m%d-%H%M%S}.png"
    path = output or Path(name)
    try:
        path.write_bytes(image)
    except OSError as error:
        raise CliError(f"cannot write {path}: {error.strerror}", ExitCode.USAGE) from None
    if as_json:
        fields = {name: evidence.get(name) for name in ("mime", "width", "height", "timestamp")}
        print_json({"environment_id": environment_id, "path": str(path), "bytes": len(image), **fields})
    else:
        session.say(f"{path}  {evidence.get('width')}x{evidence.get('height')}  {len(image) / 1000:.0f} kB")


def take(api: Api, node_id: str) -> tuple[bytes, Json]:
    """A screenshot of a node's desktop: the image, and the evidence it came in (protocol section 6.3).

    Raises:
        CliError: refused, or the node sent no image.
    """
    answer = api.dispatch(node_id, "screenshot", {"display": "primary"})
    evidence = answer.get("evidence")
    try:
        if not isinstance(evidence, dict):
            raise KeyError("evidence")
        return base64.b64decode(evidence["bytesBase64"], validate=True), evidence
    except (KeyError, TypeError, binascii.Error):
        raise CliError(f"node {node_id} answered without an image", ExitCode.FAILED) from None


def _sessions(api: Api, environment_id: str) -> list[Json]:
    path = f"{environment_path(environment_id)}/takeover-sessions"
    sessions: list[Json] = api.call("GET", path, about=f"environment {environment_id}")["sessions"]
    return sessions


def _change(
    session: Session, environment: str, beginning: str, action: str, body: Json | None, as_json: bool
) -> None:
    environment_id = session.resolve(environment)
    ids = [str(item["session_id"]) for item in _sessions(session.api, environment_id)]
    # What begins like no open session is the API's to refuse, which knows ended ones as well.
    matches = [one for one in ids if one.startswith(beginning)] or [beginning]
    if len(matches) > 1:
        message = f"{beginning!r} is the beginning of {len(matches)} takeover sessions: give more of it"
        raise CliError(message, ExitCode.USAGE)
    path = f"{environment_path(environment_id)}/takeover-sessions/{quote(matches[0], safe='')}/{action}"
    answer = session.api.call("POST", path, about=f"takeover session {matches[0]}", body=body)
    changed = answer["session"]
    if as_json:
        print_json(changed)
        return
    until = f"lives until {render.clean(changed['expires_at'])}" if action == "extend" else "revoked"
    session.say(f"takeover session {render.clean(changed['session_id'])}: {until}")
