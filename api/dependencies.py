"""What routes ask for: who is calling, and the parts of this process.

An application that includes routers sets `app.state.services = Services(…)` first.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Path, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from starlette.requests import HTTPConnection

from api.credentials import AdminCredentials
from api.temporal import Workflows
from models.errors import NotFound, Unauthorized
from models.identifiers import is_environment_id, is_host_id
from models.settings import ApiSettings

if TYPE_CHECKING:
    from api.gateway import Gateway


@dataclass(frozen=True)
class Operator:
    """Who is calling. `name`: recorded as the actor of everything done."""

    name: str


@dataclass(frozen=True)
class Services:
    """The parts of one api process that both listeners share."""

    settings: ApiSettings
    engine: Engine
    admin: AdminCredentials
    workflows: Workflows
    gateway: "Gateway"


async def authenticate(connection: HTTPConnection) -> Operator:
    """The operator behind `Authorization: Bearer <token>` (design section 5).

    Raises:
        Unauthorized: no token, or none that is live.
        Unavailable: the inventory, which knows the tokens, does not answer.
    """
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("send 'Authorization: Bearer <admin token>'")
    name = await get_services(connection).admin.operator_name(token.strip())
    if name is None:
        raise Unauthorized("this admin token is unknown, expired or revoked")
    return Operator(name)


_bearer = HTTPBearer(
    auto_error=False,
    description="`DESKTOP_ADMIN_TOKEN`, or a token of the inventory.",
)


async def require_admin(
    connection: HTTPConnection,
    _declared: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Operator:
    """The authenticated operator; declares the bearer scheme of every route that asks for it.

    Raises:
        Unauthorized: no live credential.
    """
    known = getattr(connection.state, "operator", None)
    return known if isinstance(known, Operator) else await authenticate(connection)


def get_services(connection: HTTPConnection) -> Services:
    """The parts of this process."""
    return cast(Services, connection.app.state.services)


def get_settings(connection: HTTPConnection) -> ApiSettings:
    """The settings of this process."""
    return get_services(connection).settings


def get_engine(connection: HTTPConnection) -> Engine:
    """The inventory's engine; use it in a thread (`api.database`)."""
    return get_services(connection).engine


def get_workflows(connection: HTTPConnection) -> Workflows:
    """The way to Temporal."""
    return get_services(connection).workflows


def get_gateway(connection: HTTPConnection) -> "Gateway":
    """The registry of connected nodes, shared by both listeners."""
    return get_services(connection).gateway


_UUID = Path(json_schema_extra={"format": "uuid"})


def environment_id_of(environment_id: Annotated[str, _UUID]) -> str:
    """The path's environment id.

    Raises:
        NotFound: it has not the form of an id, so there can be no such environment.
    """
    if not is_environment_id(environment_id):
        raise NotFound("there is no environment of that id")
    return environment_id


def host_id_of(host_id: str) -> str:
    """The path's host id.

    Raises:
        NotFound: it has not the form of an id, so there can be no such host.
    """
    if not is_host_id(host_id):
        raise NotFound("there is no runtime host of that id")
    return host_id


Admin = Annotated[Operator, Depends(require_admin)]
ServicesDep = Annotated[Services, Depends(get_services)]
EnvironmentId = Annotated[str, Depends(environment_id_of)]
HostId = Annotated[str, Depends(host_id_of)]
