"""takeover, screenshot."""

import base64
import binascii
import sys
import webbrowser
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.client import Api, Json, environment_path
from cli.exits import CliError, ExitCode
from cli.session import EnvironmentArgument, JsonOption, of, print_json


def takeover(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Open a takeover session: prints an address that gives a browser the desktop while it lives.

    Whoever has the address has the desktop.
    """
    session = of(ctx)
    environment_id = session.resolve(environment)
    about = f"environment {environment_id}"
    answer = session.api.call("POST", f"{environment_path(environment_id)}/takeover-token", about=about)
    url = str(answer["entry_url"])
    if as_json:
        print_json({name: value for name, value in answer.items() if name != "status"})
    else:
        typer.echo(render.clean(url))
        session.err.print(f"lives until {render.clean(answer.get('expires_at'))}", style="dim")
    if open_browser and not (url.startswith(("http://", "https://")) and webbrowser.open(url)):
        raise CliError(f"no browser could be opened for {about}: open the address by hand", ExitCode.FAILED)


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
