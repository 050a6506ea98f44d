"""codec add-key, codec endpoint: encryption of Temporal payloads (`DESKTOP_CODEC_KEYS_FILE`)."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import state
from cli.exits import CliError, ExitCode
from cli.session import JsonOption, of, print_json
from models import keyring
from models.codec_address import CODEC_PREFIX, codec_capability
from models.settings import ConfigurationError

VARIABLE = "DESKTOP_CODEC_KEYS_FILE"

app = typer.Typer(help="Encryption of Temporal payloads.", no_args_is_help=True)


@app.command("add-key")
def add_key(
    ctx: typer.Context,
    key_id: Annotated[
        str | None, typer.Argument(help="Name of the key; the present time otherwise.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a fresh key to the key ring and make it the active one; older ones still decrypt."""
    session = of(ctx)
    path = Path(os.environ.get(VARIABLE) or session.state_dir / "codec-keys.json")
    name = key_id or f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    state.prepare(session.state_dir)
    try:
        keyring.add_key(path, name)
    except ConfigurationError as error:
        raise CliError(str(error), ExitCode.USAGE) from None
    if as_json:
        print_json({"key_id": name, "file": str(path)})
        return
    session.say(f"key {name} is the active one of {path}")
    session.say(f"set {VARIABLE}={path} for every process (also for `desktopctl up`) and restart them")


@app.command()
def endpoint(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Print the address to give to the Temporal Web UI as codec server. It opens histories: treat it as a token."""
    session = of(ctx)
    token = os.environ.get("DESKTOP_ADMIN_TOKEN") or state.read_text(session.state_dir / state.ADMIN_TOKEN)
    if token is None:
        raise CliError(
            "there is no admin token here: run `desktopctl up` first, or set DESKTOP_ADMIN_TOKEN",
            ExitCode.UNAUTHORIZED,
        )
    url = f"{session.api.url}{CODEC_PREFIX}/{codec_capability(token)}"
    if as_json:
        print_json({"web_ui_codec_endpoint": url, "cli_codec_endpoint": f"{session.api.url}{CODEC_PREFIX}"})
    else:
        typer.echo(url)
