"""How a host's monitor reaches the workflows of its environments and its own."""

from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowQueryFailedError
from temporalio.service import RPCError, RPCStatusCode

from models.identifiers import SEARCH_ATTRIBUTE_HOST, SEARCH_ATTRIBUTE_STATUS, environment_workflow_id
from models.lifecycle import Status
from models.messages import EnvironmentView, Message

QUERY_TIMEOUT = timedelta(seconds=5)


class Life(StrEnum):
    """Whether an environment's workflow lives."""

    OPEN = "open"
    CLOSED = "closed"
    UNKNOWN = "unknown"
    """There is no such workflow, or no longer: closed ones are forgotten after the namespace's retention."""


_ENDED = frozenset(
    {
        WorkflowExecutionStatus.COMPLETED,
        WorkflowExecutionStatus.FAILED,
        WorkflowExecutionStatus.CANCELED,
        WorkflowExecutionStatus.TERMINATED,
        WorkflowExecutionStatus.TIMED_OUT,
    }
)
"""By name: what a newer server may call a workflow, paused for one, is no end."""


class Unreachable(Exception):
    """Temporal does not answer now; nothing is known."""


class ControlPlane(Protocol):
    """What the monitor needs; each method raises `Unreachable`."""

    async def signal(self, workflow_id: str, name: str, argument: Message) -> bool:
        """Send a signal; false when no such workflow is open."""
        ...

    async def life(self, environment_id: str) -> Life:
        """Whether the environment's workflow is open; strongly consistent."""
        ...

    async def believed_running(self, host_id: str) -> list[str]:
        """Ids of this host's environments that are recorded `running`; may lag by a moment."""
        ...

    async def believed(self, environment_id: str) -> EnvironmentView | None:
        """The environment as its workflow has it, or None where there is no such workflow."""
        ...


class TemporalLink:
    """`ControlPlane` over a Temporal client. Used in the event loop the client belongs to.

    Args:
        installation: the namespace's id; one that has another does not know our workflows, and says nothing of them.
    """

    def __init__(self, client: Client, installation: str = "") -> None:
        self._client = client
        self._installation = installation

    async def signal(self, workflow_id: str, name: str, argument: Message) -> bool:
        """See `ControlPlane`."""
        try:
            await self._client.get_workflow_handle(workflow_id).signal(name, argument)
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise Unreachable(error.message) from error
        return True

    async def life(self, environment_id: str) -> Life:
        """See `ControlPlane`."""
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        try:
            described = await handle.describe()
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise Unreachable(error.message) from error
            await self._refuse_another()
            return Life.UNKNOWN
        except ValueError:
            # A status that this version of the SDK has no name for, such as paused: no end either.
            return Life.OPEN
        return Life.CLOSED if described.status in _ENDED else Life.OPEN

    async def _refuse_another(self) -> None:
        """A namespace that is not there answers as one that knows no such workflow, and so does a fresh one."""
        try:
            found = await installation_id(self._client)
        except RPCError as error:
            raise Unreachable(error.message) from error
        if self._installation and found != self._installation:
            raise Unreachable(f"Temporal's namespace is another one now: {found}")

    async def believed_running(self, host_id: str) -> list[str]:
        """See `ControlPlane`."""
        query = (
            f"{SEARCH_ATTRIBUTE_HOST}='{host_id}' AND {SEARCH_ATTRIBUTE_STATUS}='{Status.RUNNING}' "
            "AND ExecutionStatus='Running'"
        )
        prefix = environment_workflow_id("")
        try:
            return [
                found.id.removeprefix(prefix)
                async for found in self._client.list_workflows(query)
                if found.id.startswith(prefix)
            ]
        except RPCError as error:
            raise Unreachable(error.message) from error

    async def believed(self, environment_id: str) -> EnvironmentView | None:
        """See `ControlPlane`."""
        handle = self._client.get_workflow_handle(environment_workflow_id(environment_id))
        try:
            view: EnvironmentView = await handle.query(
                "status", result_type=EnvironmentView, rpc_timeout=QUERY_TIMEOUT
            )
            return view
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise Unreachable(error.message) from error
        except (WorkflowQueryFailedError, WorkflowFailureError) as error:
            raise Unreachable(str(error)) from error


async def installation_id(client: Client) -> str:
    """The id of the client's namespace: it differs between installations, and from one with a fresh database.

    Raises:
        RPCError: Temporal does not answer.
    """
    request = DescribeNamespaceRequest(namespace=client.namespace)
    described = await client.workflow_service.describe_namespace(request)
    return described.namespace_info.id
