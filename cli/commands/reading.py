"""list, show, logs, timeline, hosts, nodes."""

import json
import time
from typing import Annotated

import typer

from cli import render, resolve
from cli.client import Json
from cli.exits import CliError, ExitCode
from cli.session import EnvironmentArgument, JsonOption, of, print_json
from models.lifecycle import Status

FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")]

_LOG_EVERY = 2.0
"""Each look at a container's log is an activity in the workflow's history, so not more often."""
_TIMELINE_EVERY = 0.5


def list_(
    ctx: typer.Context,
    label: Annotated[str | None, typer.Option(help="With this label.", show_default=False)] = None,
    status: Annotated[Status | None, typer.Option(help="In this status.", show_default=False)] = None,
    host: Annotated[str | None, typer.Option(help="On this host.", show_default=False)] = None,
    all_pages: Annotated[bool, typer.Option("--all", help="All of them, not the first page.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Environments per page.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List environments, the latest change first."""
    session = of(ctx)
    host_id = resolve.host_id(session.api.hosts(), host) if host is not None else None
    items: list[Json] = []
    unseen = False
    pages = None if all_pages else 1
    filters = {"label": label, "status": status.value if status else None, "host_id": host_id}
    for page, more in session.api.environment_pages(pages, limit, **filters):
        items += page
        unseen = more
    nothing = "no environments; make one with `desktopctl create`"
    session.listed(items, render.environments, nothing, as_json)
    if unseen:
        session.err.print("there are more: --all shows them", style="dim")


def show(ctx: typer.Context, environment: EnvironmentArgument, as_json: JsonOption = False) -> None:
    """Show everything about one environment."""
    session = of(ctx)
    item = session.api.environment(session.resolve(environment))
    if as_json:
        print_json(item)
    else:
        session.out.print(render.environment(item))


def logs(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    follow: FollowOption = False,
    refresh: Annotated[
        bool | None,
        typer.Option(
            "--refresh/--retained",
            help="Read the container now, or what was kept of the last one; now by default where it runs.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the tail of the container's log."""
    session = of(ctx)
    environment_id = session.resolve(environment)
    if refresh is None:
        refresh = follow or session.api.environment(environment_id)["status"] == "running"
    lines = session.api.logs(environment_id, refresh)
    if as_json and not follow:
        print_json({"environment_id": environment_id, "logs": lines})
        return
    shown: list[str] = []
    while True:
        for line in after(shown, lines):
            typer.echo(render.clean(line))
        if not follow:
            return
        shown = lines
        time.sleep(_LOG_EVERY)
        try:
            lines = session.api.logs(environment_id, True)
        except CliError as error:
            if error.exit_code is ExitCode.NOT_FOUND:
                session.err.print("the environment was deleted", style="dim")
                return
            raise


def after(shown: list[str], lines: list[str]) -> list[str]:
    """What of a log's tail is new, given the tail shown before."""
    for overlap in range(min(len(shown), len(lines)), 0, -1):
        if shown[-overlap:] == lines[:overlap]:
            return lines[overlap:]
    return lines


def timeline(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    follow: FollowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print every transition: when, who, why; also of a deleted environment, by its whole id."""
    session = of(ctx)
    environment_id = session.resolve(environment)
    entries = session.api.timeline(environment_id)
    if not follow:
        if as_json:
            print_json(entries)
        else:
            session.out.print(render.timeline(entries))
        return
    last: str | int | None = None
    while True:
        for entry in entries:
            last = entry.get("id", entry.get("sequence"))
            if as_json:
                typer.echo(json.dumps(entry, ensure_ascii=False))
            else:
                session.say(render.timeline_line(entry))
        time.sleep(_TIMELINE_EVERY)
        entries = session.api.timeline(environment_id, last)


def hosts(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List runtime hosts and their health."""
    session = of(ctx)
    nothing = "no runtime host has registered; a host worker does that when it starts"
    session.listed(session.api.hosts(), render.hosts, nothing, as_json)


def nodes(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List node peers."""
    session = of(ctx)
    session.listed(session.api.nodes(), render.nodes, "no node has connected yet", as_json)
