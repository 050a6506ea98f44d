"""Desktop environments: create, list, show, change, command, logs, timeline (design section 5)."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import database, service
from api.bodies import LABEL_CHARS, PLACE, CommandBody, EnvironmentCreate, EnvironmentPatch, ResetBody
from api.dependencies import Admin, EnvironmentId, Operator, Services, ServicesDep
from api.errors import responses
from api.schemas import (
    DeleteAnswer,
    Environment,
    EnvironmentAnswer,
    EnvironmentsAnswer,
    EnvironmentShown,
    EnvironmentShownAnswer,
    LogsAnswer,
    PairingShown,
    TimelineAnswer,
    TimelineEntryOut,
)
from inventory import environments, pairings
from inventory.timeline import START, parse_place
from models.errors import Conflict, InvalidRequest, NotFound, Unauthorized, Unavailable
from models.lifecycle import Command, Status

router = APIRouter(prefix="/desktop-environments", tags=["environments"])

Wait = Annotated[
    int,
    Query(ge=0, le=300, description="Seconds to wait for the outcome; 0 answers as soon as it is accepted."),
]
_READS = responses(InvalidRequest, Unauthorized, NotFound, Unavailable)
_CHANGES = responses(InvalidRequest, Unauthorized, NotFound, Conflict, Unavailable)
_COMMAND = _CHANGES | {
    200: {"model": EnvironmentAnswer, "description": "Settled within `wait`"},
    202: {"model": EnvironmentAnswer, "description": "Accepted, in progress"},
}
_DELETE = _COMMAND | {
    200: {"model": DeleteAnswer, "description": "Gone within `wait`"},
    202: {"model": DeleteAnswer, "description": "Accepted, in progress"},
}


@router.get("", summary="List environments", responses=responses(InvalidRequest, Unauthorized, Unavailable))
async def list_environments(
    services: ServicesDep,
    _operator: Admin,
    host_id: Annotated[str | None, Query(max_length=100, description="Only those on this host.")] = None,
    status: Annotated[Status | None, Query(description="Only those in this status.")] = None,
    label: Annotated[
        str | None, Query(max_length=LABEL_CHARS, description="Only those of this label.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Length of the page.")] = 50,
    cursor: Annotated[
        str | None, Query(max_length=300, description="`next_cursor` of the page before.")
    ] = None,
) -> EnvironmentsAnswer:
    """Newest change first, from the inventory; deleted environments are not listed."""
    page = await database.read(
        services.engine,
        lambda session: environments.list_page(
            session, host_id=host_id, status=status, label=label, limit=limit, cursor=cursor
        ),
    )
    return EnvironmentsAnswer(
        environments=[Environment.from_summary(row) for row in page.environments],
        next_cursor=page.next_cursor,
    )


@router.post(
    "",
    status_code=201,
    summary="Create an environment",
    responses=responses(InvalidRequest, Unauthorized, Conflict, Unavailable)
    | {201: {"headers": {"Location": {"description": "Where it is.", "schema": {"type": "string"}}}}},
)
async def create_environment(
    body: EnvironmentCreate, services: ServicesDep, operator: Admin, response: Response
) -> EnvironmentAnswer:
    """Make an environment on a host; with `desired_running` it starts at once."""
    environment = await service.create(services, operator, body)
    response.headers["Location"] = f"{router.prefix}/{environment.environment_id}"
    return EnvironmentAnswer(environment=environment)


@router.get("/{environment_id}", summary="Show an environment", responses=_READS)
async def get_environment(
    environment_id: EnvironmentId, services: ServicesDep, _operator: Admin
) -> EnvironmentShownAnswer:
    """As its workflow sees it, every command sent before included; as recorded when no worker answers."""
    environment, _ = await service.detail(services, environment_id)
    node_id, pairing = environment.node_id, None
    if node_id is not None:
        known = await database.read(services.engine, lambda session: pairings.of_node(session, node_id))
        pairing = PairingShown.from_pairing(known) if known else None
    return EnvironmentShownAnswer(environment=EnvironmentShown(**dict(environment), pairing=pairing))


@router.patch("/{environment_id}", summary="Change an environment", responses=_CHANGES)
async def patch_environment(
    environment_id: EnvironmentId, body: EnvironmentPatch, services: ServicesDep, operator: Admin
) -> EnvironmentAnswer:
    """Change label, image, security profile, limits or desired state; answers as soon as the change is accepted."""
    return EnvironmentAnswer(environment=await service.patch(services, operator, environment_id, body))


@router.delete("/{environment_id}", summary="Delete an environment", status_code=202, responses=_DELETE)
async def delete_environment(
    environment_id: EnvironmentId,
    services: ServicesDep,
    operator: Admin,
    response: Response,
    body: CommandBody | None = None,
    wait: Wait = 0,
) -> DeleteAnswer:
    """Remove it with everything it has; again while it is under way changes nothing."""
    outcome = await service.command(
        services, operator, environment_id, Command.DELETE, body or CommandBody(), wait
    )
    response.status_code = 200 if outcome.gone and wait else 202
    return DeleteAnswer(environment=outcome.environment, deleted=outcome.gone)


@router.post("/{environment_id}/start", summary="Start", status_code=202, responses=_COMMAND)
async def start_environment(
    environment_id: EnvironmentId,
    services: ServicesDep,
    operator: Admin,
    response: Response,
    body: CommandBody | None = None,
    wait: Wait = 0,
) -> EnvironmentAnswer:
    """Have it running; clears an error."""
    return await _command(
        services, operator, environment_id, Command.START, body or CommandBody(), wait, response
    )


@router.post("/{environment_id}/stop", summary="Stop", status_code=202, responses=_COMMAND)
async def stop_environment(
    environment_id: EnvironmentId,
    services: ServicesDep,
    operator: Admin,
    response: Response,
    body: CommandBody | None = None,
    wait: Wait = 0,
) -> EnvironmentAnswer:
    """Have it stopped; a start in flight is undone."""
    return await _command(
        services, operator, environment_id, Command.STOP, body or CommandBody(), wait, response
    )


@router.post("/{environment_id}/reset", summary="Reset", status_code=202, responses=_COMMAND)
async def reset_environment(
    environment_id: EnvironmentId,
    services: ServicesDep,
    operator: Admin,
    response: Response,
    body: ResetBody | None = None,
    wait: Wait = 0,
) -> EnvironmentAnswer:
    """A clean desktop of a new generation; running again if it should run."""
    return await _command(
        services, operator, environment_id, Command.RESET, body or ResetBody(), wait, response
    )


@router.get(
    "/{environment_id}/logs",
    summary="Log tail",
    responses=_CHANGES,
)
async def get_environment_logs(
    environment_id: EnvironmentId,
    services: ServicesDep,
    _operator: Admin,
    refresh: Annotated[bool, Query(description="Read the container now.")] = False,
) -> LogsAnswer:
    """The last lines of the container's log, as retained."""
    lines = await service.logs(services, environment_id, refresh)
    return LogsAnswer(environment_id=environment_id, logs=lines, refreshed=refresh)


@router.get("/{environment_id}/timeline", summary="Timeline", responses=_READS)
async def get_environment_timeline(
    environment_id: EnvironmentId,
    services: ServicesDep,
    _operator: Admin,
    after: Annotated[str, Query(pattern=PLACE, description="`id` of the last entry already read.")] = "-1.0",
    limit: Annotated[int, Query(ge=1, le=1000, description="Length of the page.")] = 200,
) -> TimelineAnswer:
    """Every transition, takeover, pairing, dispatch and alarm: when, who, why; kept after deletion."""
    items = await service.timeline(services, environment_id, parse_place(after) or START, limit)
    return TimelineAnswer(
        environment_id=environment_id,
        entries=[TimelineEntryOut.from_item(item) for item in items],
        next_after=str(items[-1].place) if len(items) == limit else None,
    )


async def _command(
    services: Services,
    operator: Operator,
    environment_id: str,
    name: Command,
    body: CommandBody,
    wait: int,
    response: Response,
) -> EnvironmentAnswer:
    outcome = await service.command(services, operator, environment_id, name, body, wait)
    response.status_code = 200 if outcome.settled else 202
    return EnvironmentAnswer(environment=outcome.environment)
