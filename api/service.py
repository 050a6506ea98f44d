"""What the admin API does.

Commands go to the workflow, which is the truth; lists come from the inventory, its projection (decision 1).
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlmodel import Session

from api import audit, database
from api.bodies import CommandBody, EnvironmentCreate, EnvironmentPatch, LimitsChange, ResetBody
from api.dependencies import Operator, Services
from api.schemas import EnvironmentDetail, Source
from inventory import audit as audited
from inventory import defaults, environments, events, hosts
from inventory import timeline as timelines
from inventory.timeline import Item, Place
from models.errors import Conflict, ErrorCode, InvalidRequest, NotFound, Unavailable
from models.identifiers import is_host_id, new_environment_id
from models.lifecycle import Command, Event, Situation, Status, apply_command, apply_event
from models.messages import (
    AwaitSettled,
    CommandSignal,
    EnvironmentInput,
    EnvironmentSpec,
    EnvironmentView,
    LastError,
    Limits,
    SpecChange,
    TimelineEntry,
)
from models.tables import AuditRow, EnvironmentRow, HostRow

logger = logging.getLogger(__name__)

RECORD_SECONDS = 1.0
"""How long "running" is held back until it is recorded; dispatch and takeover go by the record."""
RECORD_STEPS = (0.005, 0.005, 0.01, 0.02, 0.04, 0.1)
"""Seconds between looks at the record, the last of them again and again."""
HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """What became of a command. `settled`: within the time given. `gone`: the environment is deleted."""

    environment: EnvironmentDetail
    settled: bool
    gone: bool = False


async def create(services: Services, operator: Operator, body: EnvironmentCreate) -> EnvironmentDetail:
    """Start the workflow of a new environment, then record it.

    In this order a crash in between leaves a workflow that records itself, never a record nobody acts on.

    Raises:
        InvalidRequest: the host is unknown, or has to be named, or a limit is above its maximum.
        Conflict: the host cannot take it now.
    """

    def plan(session: Session) -> tuple[HostRow, str]:
        host = _chosen_host(hosts.list_all(session), body.host_id)
        row = defaults.current(session)
        return host, row.default_image_ref if row else services.settings.default_image

    host, default_image = await database.read(services.engine, plan)
    if not (host.healthy and host.docker_available):
        raise Conflict(
            f"host {host.host_id} cannot take an environment now: {host.last_error or 'not healthy'}"
        )
    spec = EnvironmentSpec(
        environment_id=new_environment_id(),
        host_id=host.host_id,
        label=body.label,
        image_ref=body.image_ref or default_image,
        security_profile=body.security_profile,
        limits=_limits(body.limits, _default_limits(host), host),
    )
    await audit.begin(
        environment_id=spec.environment_id,
        detail={
            "label": spec.label,
            "host_id": spec.host_id,
            "image_ref": spec.image_ref,
            "security_profile": spec.security_profile,
            "limits": spec.limits.model_dump(mode="json"),
            "desired_running": body.desired_running,
        },
    )
    await services.workflows.start(
        EnvironmentInput(spec=spec, desired_running=body.desired_running, actor=operator.name)
    )
    now = datetime.now(UTC)

    def insert(session: Session) -> EnvironmentRow | None:
        environments.insert_pending(session, spec, body.desired_running, now)
        return environments.get(session, spec.environment_id)

    row = await database.write(services.engine, insert)
    if row is None:
        raise Unavailable("the environment was made and deleted again at once")
    return _from_row(row)


async def detail(
    services: Services, environment_id: str, seconds: float | None = None
) -> tuple[EnvironmentDetail, EnvironmentView]:
    """The environment as its workflow sees it, or as recorded when no worker answers in time.

    Args:
        seconds: how long to wait for the workflow; the query's own deadline when None.

    Raises:
        NotFound: it does not exist, or no longer.
    """
    row, view = await asyncio.gather(
        database.read(services.engine, lambda session: environments.get(session, environment_id, True)),
        _asked(services, environment_id, seconds),
    )
    if row is not None and row.deleted_at is not None:
        raise _no_such_environment()
    if isinstance(view, EnvironmentView):
        if view.deleted:
            raise _no_such_environment()
        row = await _recorded(services, view, row)
        seen = row.last_seen_at if row else None
        return EnvironmentDetail.from_view(view, "workflow", seen), view
    if row is None:
        raise view
    recorded = environments.view(row)
    if isinstance(view, NotFound):
        recorded = _without_workflow(recorded)
    return EnvironmentDetail.from_view(recorded, "inventory", row.last_seen_at), recorded


async def command(
    services: Services,
    operator: Operator,
    environment_id: str,
    name: Command,
    body: CommandBody,
    wait_seconds: int,
) -> Outcome:
    """Send a command and, when asked to, wait for its outcome.

    Raises:
        NotFound: no such environment, or no longer. Conflict: it is being deleted.
    """
    row = await _commandable(services, environment_id, name)
    signal = CommandSignal(
        reason=body.reason,
        actor=operator.name,
        request_id=str(uuid4()),
        rotate_identity=isinstance(body, ResetBody) and body.rotate_identity,
    )
    await _begin(
        row,
        reason=body.reason,
        request_id=signal.request_id,
        rotate_identity=signal.rotate_identity or None,
    )
    try:
        await services.workflows.signal(environment_id, name.value, signal)
    except NotFound:
        if row is None:
            raise
        await _replace_workflow(services, row, name, signal)
    expected = _after(environments.view(row), name) if row else None
    return await _outcome(services, environment_id, row, expected, signal.request_id, wait_seconds)


async def patch(
    services: Services, operator: Operator, environment_id: str, body: EnvironmentPatch
) -> EnvironmentDetail:
    """Change what the operator wants of an environment; answers with it as it is right after.

    Raises:
        NotFound: no such environment, or no longer. Conflict: it is being deleted.
        InvalidRequest: a limit is above the host's maximum.
    """
    given = body.model_fields_set
    row = await _commandable(services, environment_id, None)
    expected = environments.view(row) if row else None
    limits = await _changed_limits(services, environment_id, body.limits) if "limits" in given else None
    await _begin(row, **body.model_dump(mode="json", exclude_unset=True))
    if given - {"desired_running"}:
        change = SpecChange(
            label=body.label,
            clear_label="label" in given and body.label is None,
            image_ref=body.image_ref if "image_ref" in given else None,
            limits=limits,
            # Merged once more by the workflow: two changes at once are each made from what was before.
            limits_given=sorted(body.limits.model_fields_set) if limits else None,
            security_profile=body.security_profile if "security_profile" in given else None,
            actor=operator.name,
            request_id=str(uuid4()),
        )
        await services.workflows.signal(environment_id, "change_spec", change)
        if expected is not None:
            update = body.model_dump(include=given & {"label", "image_ref", "security_profile"})
            if limits is not None:
                update["limits"] = limits
            expected = _changed(expected, expected.spec.model_copy(update=update))
    if "desired_running" in given:
        name = Command.START if body.desired_running else Command.STOP
        signal = CommandSignal(actor=operator.name, request_id=str(uuid4()), reason="desired_running changed")
        await services.workflows.signal(environment_id, name.value, signal)
        expected = _after(expected, name) if expected else None
    return (await _outcome(services, environment_id, row, expected, None, 0)).environment


async def logs(services: Services, environment_id: str, refresh: bool) -> list[str]:
    """The retained log tail, or the container's own read now.

    Raises:
        NotFound: no such environment. Conflict, Unavailable: it cannot be read now.
    """
    row = await database.read(
        services.engine, lambda session: environments.get(session, environment_id, True)
    )
    if row is not None and row.deleted_at is not None:
        raise _no_such_environment()
    if refresh:
        return await services.workflows.refresh_logs(environment_id)
    if row is None:
        # Proves the existence of one that is not recorded yet, which has no logs.
        await services.workflows.view(environment_id)
        return []
    return row.logs or row.error_logs


async def timeline(services: Services, environment_id: str, after: Place, limit: int) -> list[Item]:
    """Lines after a place: those recorded, those only the workflow has, the audit's. Kept after deletion.

    Raises:
        NotFound: there never was such an environment.
    """

    def recorded(session: Session) -> tuple[EnvironmentRow | None, list[TimelineEntry], list[AuditRow]]:
        row = environments.get(session, environment_id, include_deleted=True)
        entries = events.page(session, environment_id, after.sequence, limit)
        return row, entries, audited.of_environment(session, environment_id, after.audit_id, limit)

    row, entries, rows = await database.read(services.engine, recorded)
    if len(entries) < limit and (row is None or row.deleted_at is None):
        try:
            remembered = await services.workflows.timeline(environment_id)
        except (NotFound, Unavailable):
            if row is None:
                raise
            remembered = []
        last = entries[-1].sequence if entries else after.sequence
        entries = [*entries, *(entry for entry in remembered if entry.sequence > last)]
    return timelines.join(entries, rows, after, limit)


async def heartbeat(services: Services, row: HostRow) -> datetime | None:
    """When the host was last heard of: its monitor's heartbeat, or as recorded when Temporal does not say."""
    try:
        beat = await services.workflows.host_heartbeat(row.host_id, HEARTBEAT_SECONDS)
    except (NotFound, Unavailable) as error:
        logger.debug("heartbeat of host %s unknown: %s", row.host_id, error)
        beat = None
    return max((at for at in (beat, row.last_seen_at) if at is not None), default=None)


async def _recorded(
    services: Services, view: EnvironmentView, row: EnvironmentRow | None
) -> EnvironmentRow | None:
    """The row once it says `running`, or gone, as the workflow does: who was told so finds dispatch and takeover open,
    or nothing.

    A record that does not come in time, as with a worker that died in between, holds the answer up no longer.
    """
    deadline, steps = time.monotonic() + RECORD_SECONDS, iter(RECORD_STEPS)
    while (view.deleted or view.status is Status.RUNNING) and time.monotonic() < deadline:
        if row is not None and _says_so(row, view):
            break
        await asyncio.sleep(next(steps, RECORD_STEPS[-1]))
        row = await database.read(
            services.engine, lambda session: environments.get(session, view.spec.environment_id, True)
        )
    return row


def _says_so(row: EnvironmentRow, view: EnvironmentView) -> bool:
    if view.deleted:
        return row.deleted_at is not None
    return (row.status, row.generation) == (view.status.value, view.generation)


async def _asked(
    services: Services, environment_id: str, seconds: float | None
) -> EnvironmentView | NotFound | Unavailable:
    try:
        if seconds is None:
            return await services.workflows.view(environment_id)
        return await services.workflows.view(environment_id, seconds)
    except (NotFound, Unavailable) as error:
        return error


async def _commandable(
    services: Services, environment_id: str, name: Command | None
) -> EnvironmentRow | None:
    """The row, if any, of an environment that may be sent this command; one not recorded yet may."""
    row = await database.read(
        services.engine, lambda session: environments.get(session, environment_id, True)
    )
    if row is not None and row.deleted_at is not None:
        raise _no_such_environment()
    audit.note(generation=row.generation if row else None)
    if row is not None and row.status == Status.DELETING and name is not Command.DELETE:
        raise Conflict("the environment is being deleted")
    return row


async def _begin(row: EnvironmentRow | None, **detail: object) -> None:
    """Record a command before it is sent; whether there is anything to send it to is not known without a row."""
    if row is None:
        audit.note(detail=detail)
    else:
        await audit.begin(detail=detail)


async def _replace_workflow(
    services: Services, row: EnvironmentRow, name: Command, signal: CommandSignal
) -> None:
    """Give an environment whose workflow was terminated by hand a new one, which begins with the command."""
    last = await database.read(
        services.engine, lambda session: events.last_sequence(session, row.environment_id)
    )
    request = EnvironmentInput(
        spec=environments.view(row).spec,
        # A stop has to find something to end: the former workflow may have left a container and a token.
        desired_running=row.desired_running or name is Command.STOP,
        actor=signal.actor,
        generation=row.generation,
        sequence=last,
    )
    logger.warning("environment %s has no workflow any more: starting one", row.environment_id)
    await services.workflows.replace(request, name.value, signal)


def _without_workflow(recorded: EnvironmentView) -> EnvironmentView:
    """What can be said of an environment whose workflow is gone: nothing of what was recorded holds for sure."""
    error = LastError(
        code=ErrorCode.INTERNAL,
        message="its workflow is gone, terminated by hand perhaps; start, stop, reset or delete gives it a new one",
        phase="workflow",
        at=datetime.now(UTC),
        generation=recorded.generation,
    )
    update = {"status": Status.ERROR, "last_error": error, "takeover_available": False, "settled": True}
    return recorded.model_copy(update=update)


async def _outcome(
    services: Services,
    environment_id: str,
    row: EnvironmentRow | None,
    expected: EnvironmentView | None,
    request_id: str | None,
    wait_seconds: int,
) -> Outcome:
    """The environment after an accepted command; what goes wrong from here on does not undo that.

    Args:
        expected: what the command makes of the record; shown when the workflow does not answer in time, and without
            `wait_seconds`: it is busy with the command now, and asking it would make accepting slow.
    """
    source: Source = "expected"
    view, gone = expected, False
    if wait_seconds:
        source = "inventory"
        request = AwaitSettled(after_request_id=request_id, timeout_seconds=wait_seconds)
        try:
            view = await services.workflows.await_settled(environment_id, request)
            source = "workflow"
            row = await _recorded(services, view, row)
            gone = view.deleted and row is not None and row.deleted_at is not None
        except NotFound:
            # It was there a moment ago: its workflow has ended, as only a deleted environment's does.
            gone = True
        except (Unavailable, Conflict) as error:
            logger.info("the outcome of a command to %s is not known yet: %s", environment_id, error)
    if view is None:
        source = "workflow"
        with contextlib.suppress(Unavailable):
            view = await services.workflows.view(environment_id)
    if view is None:
        raise Unavailable("the command was accepted; the environment cannot be shown now")
    if source == "expected":
        # Whatever the command comes to: the workflow has not said so.
        view = view.model_copy(update={"settled": False})
    settled = bool(wait_seconds) and (gone or (source == "workflow" and view.settled and not view.deleted))
    seen = row.last_seen_at if row else None
    return Outcome(EnvironmentDetail.from_view(view, source, seen), settled, gone)


def _after(view: EnvironmentView, name: Command) -> EnvironmentView:
    """What the transition function makes of a command, so that an answer never shows what was before it."""
    now = Situation(view.status, view.desired_running, recovery=view.recovery)
    return _in(view, apply_command(now, name).situation)


def _changed(view: EnvironmentView, spec: EnvironmentSpec) -> EnvironmentView:
    """The environment with another specification; a desktop that runs by the former one is made anew."""
    then = view.model_copy(update={"spec": spec})
    if view.spec.model_copy(update={"label": spec.label}) == spec:
        return then
    now = Situation(view.status, view.desired_running, recovery=view.recovery)
    return _in(then, apply_event(now, Event.SPEC_CHANGED).situation)


def _in(view: EnvironmentView, then: Situation) -> EnvironmentView:
    changed = {"status": then.status, "desired_running": then.desired_running, "recovery": then.recovery}
    still = view.takeover_available and then.status is Status.RUNNING
    return view.model_copy(update=changed | {"takeover_available": still})


def _chosen_host(known: list[HostRow], host_id: str | None) -> HostRow:
    if host_id is None:
        if len(known) == 1:
            return known[0]
        have = "no runtime host is known yet; start a host worker" if not known else "there is more than one"
        raise InvalidRequest(f"host_id: name the runtime host ({have})")
    for host in known:
        if host.host_id == host_id:
            return host
    shown = f" {host_id!r}" if is_host_id(host_id) else ""
    raise InvalidRequest(f"host_id: there is no runtime host{shown}")


async def _changed_limits(services: Services, environment_id: str, change: LimitsChange) -> Limits:
    """The environment's limits with what was given; raises as `_limits`."""
    _, view = await detail(services, environment_id)
    host = await database.read(services.engine, lambda session: hosts.get(session, view.spec.host_id))
    return _limits(change, view.spec.limits, host)


def _default_limits(host: HostRow) -> Limits:
    """The defaults, lower where the host has less."""
    return Limits() if host.max_limits is None else Limits().lowered_to(_most(host.max_limits))


def _limits(change: LimitsChange, base: Limits, host: HostRow | None) -> Limits:
    """`base` with what was given, within the host's maxima.

    Raises:
        InvalidRequest: above a maximum, or more shared memory than memory.
    """
    limits = change.over(base)
    if host is not None and host.max_limits is not None:
        beyond = limits.above(_most(host.max_limits))
        if beyond is not None:
            raise InvalidRequest(f"limits: {beyond} of host {host.host_id}")
    if limits.shm_mb > limits.memory_mb:
        raise InvalidRequest(
            f"limits: shm_mb {limits.shm_mb} is above memory_mb {limits.memory_mb}, towards which it counts"
        )
    return limits


def _most(recorded: dict[str, Any]) -> Limits:
    return Limits.model_validate(recorded)


def _from_row(row: EnvironmentRow) -> EnvironmentDetail:
    return EnvironmentDetail.from_view(environments.view(row), "inventory", row.last_seen_at)


def _no_such_environment() -> NotFound:
    return NotFound("there is no environment of that id")
