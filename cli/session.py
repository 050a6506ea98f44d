"""What every command shares: whom it talks to, and how it prints."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import client, resolve
from cli.client import Api, Json

_WIDE = 200

JsonOption = Annotated[bool, typer.Option("--json", help="Print the API's objects as JSON, nothing else.")]
EnvironmentArgument = Annotated[
    str, typer.Argument(metavar="ENVIRONMENT", help="Id, the beginning of one, or a label.")
]
WaitOption = Annotated[
    bool, typer.Option("--wait/--no-wait", help="Wait for the outcome, showing each phase as it is done.")
]
TimeoutOption = Annotated[
    float, typer.Option("--timeout", min=0.1, max=86400, help="Seconds to wait at most, with --wait.")
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Why; kept in the timeline.", show_default=False)
]


def new_console(stderr: bool = False) -> Console:
    """A console; wide where it is no terminal, so that what a script reads is not cut."""
    console = Console(stderr=stderr, highlight=False)
    return (
        console
        if console.is_terminal or "COLUMNS" in os.environ
        else Console(stderr=stderr, highlight=False, width=_WIDE)
    )


@dataclass
class Session:
    """One invocation.

    Attributes:
        state_dir: where `desktopctl up` keeps its token and addresses.
        api_url: named by the operator, or None.
        debug: show tracebacks.
        out, err: standard output and standard error.
    """

    state_dir: Path
    api_url: str | None = None
    debug: bool = False
    out: Console = field(default_factory=new_console)
    err: Console = field(default_factory=lambda: new_console(stderr=True))
    _api: Api | None = None

    @property
    def api(self) -> Api:
        """The admin API. Raises `CliError` when there is no token for it."""
        if self._api is None:
            self._api = client.connect(self.state_dir, self.api_url)
        return self._api

    def close(self) -> None:
        """Let go of what the command used."""
        if self._api is not None:
            self._api.close()

    def resolve(self, text: str) -> str:
        """Id of the environment the operator means."""
        return resolve.environment_id(self.api, text)

    def listed(
        self, items: list[Json], table: Callable[[list[Json]], Table], nothing: str, as_json: bool
    ) -> None:
        """A list as JSON or as a table; for people `nothing` where it is empty."""
        if as_json:
            print_json(items)
        elif items:
            self.out.print(table(items))
        else:
            self.say(nothing, style="dim")

    def say(self, text: str | Text, style: str = "") -> None:
        """One line for people, never wrapped and never taken for markup."""
        self.out.print(text if isinstance(text, Text) else Text(text, style=style), soft_wrap=True)


def of(ctx: typer.Context) -> Session:
    """The session the root command made."""
    session = ctx.find_object(Session)
    if session is None:
        raise RuntimeError("no command runs before the root callback")
    return session


def print_json(value: Any) -> None:
    """Machine-readable output: one JSON document on standard output."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
