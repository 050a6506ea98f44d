"""audit: who did what, from where, when, with what outcome."""

import json
import time
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from cli import render, times
from cli.client import Json
from cli.session import JsonOption, Session, of, print_json
from inventory.audit import Outcome

_EVERY = 0.5
_PAGE = 1000
_STYLES = {"accepted": "green", "refused": "yellow", "failed": "red"}


def audit(
    ctx: typer.Context,
    environment: Annotated[
        str | None,
        typer.Option(help="Of this environment: id, beginning or label; the whole id of a deleted one."),
    ] = None,
    actor: Annotated[str | None, typer.Option(help="By this operator, node or part.")] = None,
    action: Annotated[str | None, typer.Option(help="Of this name, or below it: `pairing`, `token`.")] = None,
    outcome: Annotated[Outcome | None, typer.Option(help="With this outcome.")] = None,
    since: Annotated[str | None, typer.Option(help="From this time on, or so long ago: 2h, 7d.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this time, or so long ago.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The newest so many.")] = 50,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the audit, oldest line first."""
    session = of(ctx)
    filters: Json = {
        "environment_id": session.resolve(environment) if environment is not None else None,
        "actor": actor,
        "action": action,
        "outcome": outcome.value if outcome else None,
        "since": times.instant(since, "--since") if since else None,
        "until": times.instant(until, "--until") if until else None,
    }
    filters = {name: value for name, value in filters.items() if value is not None}
    entries = _newest(session, filters, limit)
    if not follow:
        if as_json:
            print_json(entries)
        elif entries:
            session.out.print(_table(entries))
        else:
            session.say("nothing of that in the audit", style="dim")
        return
    last = "0"
    while True:
        for entry in entries:
            last = str(entry["audit_id"])
            if as_json:
                typer.echo(json.dumps(entry, ensure_ascii=False))
            else:
                session.say(Text("  ").join(Text.assemble(cell) for cell in _cells(entry)))
        time.sleep(_EVERY)
        answer = session.api.call(
            "GET", "/audit", params=filters | {"oldest_first": "true", "cursor": last, "limit": _PAGE}
        )
        entries = answer["entries"]


def _newest(session: Session, filters: Json, limit: int) -> list[Json]:
    found: list[Json] = []
    params = dict(filters)
    while len(found) < limit:
        answer = session.api.call("GET", "/audit", params=params | {"limit": min(_PAGE, limit - len(found))})
        found += answer["entries"]
        if not answer.get("next_cursor"):
            break
        params["cursor"] = answer["next_cursor"]
    return found[::-1]


def _table(entries: list[Json]) -> Table:
    table = render.grid("TIME", "WHO", "FROM", "WHAT", "OUTCOME", "ENVIRONMENT", "GEN", "MESSAGE")
    for entry in entries:
        table.add_row(*_cells(entry))
    return table


def _cells(entry: Json) -> tuple[str | Text, ...]:
    at = render.parse_time(entry.get("at"))
    outcome = str(entry.get("outcome"))
    generation = entry.get("generation")
    detail = entry.get("detail") or {}
    words = [entry.get("code"), entry.get("target"), *(f"{name}={value}" for name, value in detail.items())]
    return (
        at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at else "-",
        render.clean(entry.get("actor")),
        render.clean(entry.get("source") or "-"),
        render.clean(entry.get("action")),
        Text(render.clean(outcome), style=_STYLES.get(outcome, "")),
        render.short(entry.get("environment_id") or "-"),
        render.clean("-" if generation is None else generation),
        "; ".join(render.clean(word) for word in words if word),
    )
