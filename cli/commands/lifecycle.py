"""create, update, start, stop, reset, delete."""

import sys
from typing import Annotated

import typer

from cli import render, resolve, waiting
from cli.client import Json
from cli.exits import CliError, ExitCode
from cli.session import (
    EnvironmentArgument,
    JsonOption,
    ReasonOption,
    Session,
    TimeoutOption,
    WaitOption,
    of,
    print_json,
)
from models.messages import SecurityProfile

CpusOption = Annotated[float | None, typer.Option(help="CPU cores, such as 1.5.", show_default=False)]
MemoryOption = Annotated[int | None, typer.Option("--memory", help="Memory, MiB.", show_default=False)]
PidsOption = Annotated[int | None, typer.Option(help="Processes and threads.", show_default=False)]
ShmOption = Annotated[
    int | None, typer.Option("--shm", help="Shared memory, MiB; part of the memory.", show_default=False)
]


def create(
    ctx: typer.Context,
    label: Annotated[str | None, typer.Option(help="Name for people.", show_default=False)] = None,
    image: Annotated[
        str | None, typer.Option(help="Image; the installation's default otherwise.", show_default=False)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Runtime host; needed when there are several.", show_default=False)
    ] = None,
    security_profile: Annotated[
        SecurityProfile | None,
        typer.Option(help="`compatible` for images that need more, such as root.", show_default=False),
    ] = None,
    cpus: CpusOption = None,
    memory_mb: MemoryOption = None,
    pids: PidsOption = None,
    shm_mb: ShmOption = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start it at once.")] = True,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Create an environment, and start it unless told otherwise."""
    session = of(ctx)
    body: Json = {"host_id": resolve.host_id(session.api.hosts(), host), "desired_running": start}
    if label is not None:
        body["label"] = label
    body |= _container(image, security_profile, _limits(cpus, memory_mb, pids, shm_mb))
    answer = session.api.call("POST", "/desktop-environments", about="new environment", body=body)
    environment: Json = answer["environment"]
    environment_id = str(environment["environment_id"])
    if not as_json:
        session.say(f"created environment {environment_id}")
    if wait:
        environment = waiting.settle(
            session, environment_id, lambda _: session.api.environment(environment_id), timeout, not as_json
        )
    _conclude(session, environment, "running" if start else "stopped", wait, as_json)


def update(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    label: Annotated[str | None, typer.Option(help="New name for people.", show_default=False)] = None,
    clear_label: Annotated[bool, typer.Option("--clear-label", help="Have no label.")] = False,
    image: Annotated[str | None, typer.Option(help="New image.", show_default=False)] = None,
    security_profile: Annotated[
        SecurityProfile | None, typer.Option(help="New security profile.", show_default=False)
    ] = None,
    cpus: CpusOption = None,
    memory_mb: MemoryOption = None,
    pids: PidsOption = None,
    shm_mb: ShmOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Change an environment; all but a new label makes a running desktop anew."""
    session = of(ctx)
    if label is not None and clear_label:
        raise CliError("--label and --clear-label exclude each other", ExitCode.USAGE, "invalid_request")
    body: Json = {}
    if label is not None or clear_label:
        body["label"] = label
    body |= _container(image, security_profile, _limits(cpus, memory_mb, pids, shm_mb))
    if not body:
        raise CliError("nothing to change; see `desktopctl update --help`", ExitCode.USAGE, "invalid_request")
    environment_id = session.resolve(environment)
    path = f"/desktop-environments/{environment_id}"
    changed: Json = session.api.call("PATCH", path, about=environment_id, body=body)["environment"]
    if wait:
        changed = waiting.settle(
            session, environment_id, lambda _: session.api.environment(environment_id), timeout, not as_json
        )
    goal = "running" if changed.get("desired_running") else "stopped"
    _conclude(session, changed, goal, wait, as_json)


def start(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    reason: ReasonOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Start an environment; also what clears an error."""
    _command(of(ctx), environment, "start", _body(reason), wait, timeout, as_json)


def stop(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    reason: ReasonOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Stop an environment; its runtime home and identity stay."""
    _command(of(ctx), environment, "stop", _body(reason), wait, timeout, as_json)


def reset(
    ctx: typer.Context,
    environment: EnvironmentArgument,
    rotate_identity: Annotated[
        bool, typer.Option("--rotate-identity", help="Replace the node's identity too.")
    ] = False,
    reason: ReasonOption = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Give an environment a clean desktop: new container, empty home, fresh token."""
    body = _body(reason) | ({"rotate_identity": True} if rotate_identity else {})
    _command(of(ctx), environment, "reset", body, wait, timeout, as_json)


def delete(
    ctx: typer.Context,
    environments: Annotated[
        list[str], typer.Argument(metavar="ENVIRONMENT...", help="Ids, beginnings of ids, or labels.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: WaitOption = False,
    timeout: TimeoutOption = 120,
    as_json: JsonOption = False,
) -> None:
    """Delete environments for good: container, files, tokens and pairing."""
    session = of(ctx)
    ids = list(dict.fromkeys(session.resolve(text) for text in environments))
    if not yes and is_terminal():
        question = f"Delete {', '.join(ids)} for good?"
        if not typer.confirm(question, err=True):
            raise CliError("nothing was deleted", ExitCode.FAILED, "aborted")
    answers = []
    for environment_id in ids:
        if wait:
            answer = waiting.delete(session, environment_id, timeout, not as_json)
        else:
            answer = session.api.delete(environment_id)
        answers.append({"environment_id": environment_id, "deleted": bool(answer.get("deleted"))})
        if not as_json:
            session.say(f"environment {environment_id} {'is deleted' if wait else 'is being deleted'}")
    if as_json:
        print_json(answers)


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def _command(
    session: Session, text: str, name: str, body: Json, wait: bool, timeout: float, as_json: bool
) -> None:
    environment_id = session.resolve(text)
    if not wait:
        environment = session.api.command(environment_id, name, body=body or None)
    else:
        environment = waiting.settle(
            session,
            environment_id,
            lambda seconds: session.api.command(environment_id, name, seconds, body or None),
            timeout,
            not as_json,
        )
    goal = {"start": "running", "stop": "stopped"}.get(name)
    if goal is None:
        goal = "running" if environment.get("desired_running") else "stopped"
    _conclude(session, environment, goal, wait, as_json)


def _conclude(session: Session, environment: Json, goal: str, waited: bool, as_json: bool) -> None:
    """Print the outcome.

    Raises:
        CliError: it was waited for and is not what was asked for.
    """
    environment_id, status = str(environment["environment_id"]), str(environment.get("status"))
    if as_json:
        print_json(environment)
    elif not waited:
        hint = "" if status == goal else f"; see `desktopctl show {render.short(environment_id)}`"
        session.say(f"environment {environment_id} is {status}{hint}")
    elif status == goal:
        session.say(f"environment {environment_id} is {status}", style="green")
    if waited and status != goal:
        raise _missed(environment, goal)


def _missed(environment: Json, goal: str) -> CliError:
    environment_id = str(environment["environment_id"])
    error = environment.get("last_error")
    where = f"see `desktopctl timeline {render.short(environment_id)}`"
    if not error:
        return CliError(
            f"environment {environment_id} is {environment.get('status')} and not {goal}: "
            "somebody else acted; "
            f"{where}",
            ExitCode.FAILED,
        )
    code, message = render.clean(error.get("code")), render.clean(error.get("message"))
    return CliError(
        f"environment {environment_id} ended in error {code}: {message}; {where}", ExitCode.FAILED, code
    )


def _container(image: str | None, security_profile: SecurityProfile | None, limits: Json) -> Json:
    """What was given of the container to be."""
    given: Json = {} if image is None else {"image_ref": image}
    if security_profile is not None:
        given["security_profile"] = security_profile.value
    return given | ({"limits": limits} if limits else {})


def _limits(cpus: float | None, memory_mb: int | None, pids: int | None, shm_mb: int | None) -> Json:
    given = {"cpus": cpus, "memory_mb": memory_mb, "pids": pids, "shm_mb": shm_mb}
    return {name: value for name, value in given.items() if value is not None}


def _body(reason: str | None) -> Json:
    return {"reason": reason} if reason is not None else {}
