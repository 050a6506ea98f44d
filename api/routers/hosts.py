"""Runtime hosts and their health as recorded (design section 5)."""

import asyncio

from fastapi import APIRouter

from api import database, service
from api.dependencies import Admin, HostId, ServicesDep
from api.errors import responses
from api.schemas import Host, HostAnswer, HostsAnswer
from inventory import hosts
from models.errors import NotFound, Unauthorized, Unavailable

router = APIRouter(prefix="/desktop-environment-hosts", tags=["hosts"])


@router.get("", summary="List runtime hosts", responses=responses(Unauthorized, Unavailable))
async def list_hosts(services: ServicesDep, _operator: Admin) -> HostsAnswer:
    """Every host that has ever reported itself, by label."""
    rows = await database.read(services.engine, hosts.list_all)
    beats = await asyncio.gather(*(service.heartbeat(services, row) for row in rows))
    return HostsAnswer(hosts=[Host.from_row(row, beat) for row, beat in zip(rows, beats, strict=True)])


@router.get(
    "/{host_id}", summary="Show a runtime host", responses=responses(Unauthorized, NotFound, Unavailable)
)
async def get_host(host_id: HostId, services: ServicesDep, _operator: Admin) -> HostAnswer:
    """One host."""
    row = await database.read(services.engine, lambda session: hosts.get(session, host_id))
    if row is None:
        raise NotFound("there is no runtime host of that id")
    return HostAnswer(host=Host.from_row(row, await service.heartbeat(services, row)))
