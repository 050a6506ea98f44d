"""tokens create, list, revoke: operators' bearer tokens."""

import getpass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cli import render, times
from cli.client import Json
from cli.exits import CliError, ExitCode
from cli.session import JsonOption, Session, of, print_json
from inventory import admin_tokens, audit
from inventory.admin_tokens import NameTaken
from inventory.audit import ActorKind, Fact, Outcome
from inventory.engine import describe, make_engine, writing
from models.settings import ConfigurationError, Settings, load

app = typer.Typer(help="Operators' bearer tokens.", no_args_is_help=True)


@app.command("list")
def list_(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List the tokens, ended ones too; never their texts."""
    session = of(ctx)
    nothing = "no tokens but DESKTOP_ADMIN_TOKEN; make one with `desktopctl tokens create`"
    session.listed(_tokens(session), _table, nothing, as_json)


@app.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is; named in the audit.")],
    expires_in: Annotated[
        str | None,
        typer.Option(
            "--expires-in",
            help="How long it lives, such as 12h or 30d; for ever otherwise.",
            show_default=False,
        ),
    ] = None,
    local: Annotated[
        bool,
        typer.Option(
            "--local",
            help="Without the API, straight into the inventory (DESKTOP_STATE_DIR, DESKTOP_DATABASE_URL): "
            "for an operator who has lost every token and may read those files.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a token and print it, this once."""
    session = of(ctx)
    lifetime = None if expires_in is None else times.seconds(expires_in, "--expires-in")
    if local:
        token, text = _create_locally(session, name, lifetime)
    else:
        body: Json = {"name": name} | ({} if lifetime is None else {"expires_in_seconds": lifetime})
        answer = session.api.call("POST", "/tokens", about=f"token {name!r}", body=body)
        token, text = answer["token"], str(answer["bearer_token"])
    if as_json:
        print_json({"token": token, "bearer_token": text})
        return
    typer.echo(text)
    end = f"lives until {render.clean(token['expires_at'])}" if token["expires_at"] else "does not expire"
    session.err.print(f"token {render.clean(token['token_id'])} {end}; it is not shown again", style="dim")


@app.command()
def revoke(
    ctx: typer.Context,
    token: Annotated[
        str, typer.Argument(metavar="TOKEN", help="Id, the beginning of one, or the name of a live one.")
    ],
    as_json: JsonOption = False,
) -> None:
    """End a token, within a second."""
    session = of(ctx)
    known = _tokens(session)
    found = [t for t in known if t["token_id"] == token]
    found = found or [t for t in known if t["live"] and t["name"] == token]
    found = found or [t for t in known if token and t["token_id"].startswith(token)]
    if len(found) != 1:
        problem = "no token has that id or name" if not found else "several tokens are meant; give a whole id"
        code = ExitCode.NOT_FOUND if not found else ExitCode.USAGE
        raise CliError(f"{token!r}: {problem}; see `desktopctl tokens list`", code)
    token_id = found[0]["token_id"]
    answer = session.api.call("POST", f"/tokens/{quote(token_id, safe='')}/revoke", about=f"token {token_id}")
    if as_json:
        print_json(answer["token"])
    else:
        session.say(f"token {token_id} ({render.clean(found[0]['name'])}) is revoked")


def _tokens(session: Session) -> list[Json]:
    return list(session.api.call("GET", "/tokens")["tokens"])


def _create_locally(session: Session, name: str, lifetime: int | None) -> tuple[Json, str]:
    if not name.strip() or not name.isprintable() or len(name) > admin_tokens.NAME_CHARS:
        raise CliError("a token's name is one line of printable characters", ExitCode.USAGE)
    now = datetime.now(UTC)
    try:
        expires_at = None if lifetime is None else now + timedelta(seconds=lifetime)
        url = load(Settings).database_url or f"sqlite:///{session.state_dir / 'inventory.db'}"
        _must_exist(url)
        engine = make_engine(url)
    except (ConfigurationError, OverflowError) as error:
        raise CliError(str(error), ExitCode.USAGE) from None
    try:
        row, token = admin_tokens.prepare(name, now, expires_at)
        with writing(engine) as database:
            admin_tokens.insert(database, row, now)
            audit.append(database, _fact(row.token_id, name), now)
    except NameTaken:
        raise CliError(
            f"there is a live token named {name!r}; choose another name", ExitCode.CONFLICT
        ) from None
    except SQLAlchemyError as error:
        raise CliError(f"the inventory cannot be used: {describe(error)}", ExitCode.UNAVAILABLE) from None
    finally:
        engine.dispose()
    shown = {"token_id": row.token_id, "name": row.name, "created_at": now.isoformat(), "live": True}
    return shown | {
        "expires_at": expires_at.isoformat() if expires_at else None,
        "revoked_at": None,
    }, token.text


def _fact(token_id: str, name: str) -> Fact:
    return Fact(
        action="token.create",
        outcome=Outcome.ACCEPTED,
        actor_kind=ActorKind.OPERATOR,
        actor=f"shell:{_user()}",
        target=token_id,
        detail={"name": name, "local": True},
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def _must_exist(url: str) -> None:
    """A new SQLite file would be made otherwise, and a token in it opens nothing."""
    try:
        parsed = make_url(url)
    except (SQLAlchemyError, ValueError):
        return
    file = parsed.database if parsed.drivername.startswith("sqlite") else None
    if file and not Path(file).is_file():
        raise CliError(
            f"there is no inventory at {file}: set DESKTOP_STATE_DIR or DESKTOP_DATABASE_URL",
            ExitCode.NOT_FOUND,
        )


def _table(items: list[Json]) -> Table:
    table = render.grid("ID", "NAME", "LIVE", "CREATED", "EXPIRES", "REVOKED")
    for item in items:
        table.add_row(
            render.clean(item.get("token_id")),
            Text(render.clean(item.get("name"))),
            render.yes(item.get("live")),
            render.ago(item.get("created_at")),
            render.ago(item.get("expires_at")),
            render.ago(item.get("revoked_at")),
        )
    return table
