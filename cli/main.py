"""The `desktopctl` command."""

import json
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from cli import exits
from cli.commands import audit, codec, desktop, lifecycle, pairings, reading, tokens
from cli.exits import CliError, ExitCode
from cli.session import JsonOption, Session, of, print_json
from models.settings import default_state_dir


class _Commands(TyperGroup):
    """The root group: whatever goes wrong below it becomes one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except CliError as error:
            _fail(ctx, error)
        except BrokenPipeError:
            # The reader went away, as `head` does; Python would complain again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.OK) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if type(error).__module__.startswith("typer."):
                raise
            problem = f"unexpected {type(error).__name__}: {error}; --debug shows where"
            _fail(ctx, CliError(" ".join(problem.split()), ExitCode.FAILED, "internal"))


app = typer.Typer(
    cls=_Commands,
    name="desktopctl",
    help="Disposable, sandboxed desktops: create them, drive them, take them down.",
    epilog="Exit codes: 0 done, 1 failed or ended in error, 2 wrong input, 3 not found, 4 conflict, "
    "5 API or Temporal unavailable, 6 unauthorized, 124 timed out waiting, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    ctx: typer.Context,
    api_url: Annotated[
        str | None,
        typer.Option(
            envvar="DESKTOP_API_URL", help="The admin API; otherwise the local `up`'s.", show_default=False
        ),
    ] = None,
    state_dir: Annotated[
        Path | None,
        typer.Option(envvar="DESKTOP_STATE_DIR", help="Where `up` keeps its state.", show_default=False),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Options for every command, given before it."""
    directory = (state_dir or default_state_dir()).expanduser().absolute()
    session = Session(state_dir=directory, api_url=api_url or None, debug=debug)
    ctx.obj = session
    ctx.call_on_close(session.close)


@app.command()
def up(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Run the whole stack on this machine until Ctrl-C: Temporal, API, control worker, host worker.

    With --json one line on standard output tells the addresses as soon as everything is ready.
    """
    from cli import up as stack_up

    session = of(ctx)
    stack_up.run(session.state_dir, as_json=as_json, console=session.err if as_json else session.out)


@app.command("version")
def version_(as_json: JsonOption = False) -> None:
    """Print the version."""
    try:
        text = version("desktop-environments")
    except PackageNotFoundError:
        text = "0 (not installed)"
    if as_json:
        print_json({"version": text})
    else:
        typer.echo(f"desktopctl {text}")


app.command()(lifecycle.create)
app.command("list")(reading.list_)
app.command()(reading.show)
app.command()(lifecycle.update)
app.command()(lifecycle.start)
app.command()(lifecycle.stop)
app.command()(lifecycle.reset)
app.command()(lifecycle.delete)
app.command()(reading.logs)
app.command()(reading.timeline)
app.command()(desktop.takeover)
app.add_typer(desktop.takeover_sessions, name="takeover-sessions")
app.command()(desktop.screenshot)
app.command()(reading.hosts)
app.command()(reading.nodes)
app.add_typer(pairings.app, name="pairings")
app.add_typer(codec.app, name="codec")
app.add_typer(tokens.app, name="tokens")
app.command("audit")(audit.audit)


def main() -> None:
    """Entry point of the installed command."""
    app()


def _fail(ctx: Any, error: CliError) -> None:
    session = ctx.obj if isinstance(ctx.obj, Session) else None
    if session is not None and session.debug:
        traceback.print_exc()
    if "--json" in sys.argv:
        typer.echo(json.dumps({"error": error.code, "message": error.message}), err=True)
    else:
        console = Console(stderr=True, highlight=False)
        message = " ".join(error.message.split())
        console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(error.exit_code) from None


__all__ = ["app", "exits", "main"]

if __name__ == "__main__":
    main()
