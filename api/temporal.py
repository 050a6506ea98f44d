"""Temporal as the API uses it: few verbs, each with a deadline, each failing as an `ApiError`.

The connection is lazy, so the API boots and answers while Temporal is away (temporal-notes A.12).
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import anyio
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import (
    QueryRejectCondition,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.envconfig import ClientConfig
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from models.errors import HOST_CODES, Conflict, NotFound, Unavailable
from models.identifiers import (
    CONTROL_TASK_QUEUE,
    SEARCH_ATTRIBUTE_HOST,
    SEARCH_ATTRIBUTE_STATUS,
    environment_workflow_id,
    host_workflow_id,
)
from models.keyring import KeyRing
from models.lifecycle import Status
from models.messages import (
    AwaitSettled,
    CommandSignal,
    EnvironmentInput,
    EnvironmentView,
    NodePresence,
    SpecChange,
    TimelineEntry,
)
from models.settings import ConfigurationError
from workflows import policies
from workflows.plugin import ControlPlanePlugin

logger = logging.getLogger(__name__)

ENVIRONMENT_WORKFLOW = "DesktopEnvironment"
HOST_MONITOR_ACTIVITY = "monitor_host"

COMMAND_SECONDS = 8.0
"""Deadline of a start or a signal: the server alone answers it, and a refused connection fails at once.

Under a storm of commands one signal took up to 3.4 s here (the server busy, the client trying again); it must
not be lost to that.
"""
QUERY_SECONDS = 2.0
"""Deadline of a query: a control worker answers it, and there may be none."""
REFRESH_SECONDS = 15.0
"""Deadline of reading a container's logs now: control worker and host worker take part."""
_SUMMARY_BYTES = 180
"""Temporal keeps 200 bytes of a static summary."""

_STATUS = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_STATUS)
_HOST = SearchAttributeKey.for_keyword(SEARCH_ATTRIBUTE_HOST)


class Workflows:
    """The environment and host workflows.

    Every method raises `Unavailable` when Temporal, or the worker it needs, does not answer in time, and
    those about one environment raise `NotFound` when its workflow does not exist or has ended.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def start(self, request: EnvironmentInput) -> None:
        """Start the workflow of a new environment; one of this id that runs already is the one."""
        await self._start(request, WorkflowIDReusePolicy.REJECT_DUPLICATE)

    async def replace(self, request: EnvironmentInput, name: str, argument: CommandSignal) -> None:
        """Start a workflow in the place of one that was terminated, with its first signal."""
        await self._start(request, WorkflowIDReusePolicy.ALLOW_DUPLICATE, name, [argument])

    async def _start(
        self,
        request: EnvironmentInput,
        reuse: WorkflowIDReusePolicy,
        signal: str | None = None,
        signal_args: Sequence[CommandSignal] = (),
    ) -> None:
        spec = request.spec
        async with _deadline(COMMAND_SECONDS):
            await self._client.start_workflow(
                ENVIRONMENT_WORKFLOW,
                request,
                id=environment_workflow_id(spec.environment_id),
                task_queue=CONTROL_TASK_QUEUE,
                task_timeout=policies.WORKFLOW_TASK,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=reuse,
                start_signal=signal,
                start_signal_args=signal_args,
                search_attributes=TypedSearchAttributes(
                    [
                        SearchAttributePair(_STATUS, Status.PENDING.value),
                        SearchAttributePair(_HOST, spec.host_id),
                    ]
                ),
                static_summary=_summary(f"{spec.label or spec.image_ref} on {spec.host_id}"),
            )

    async def signal(
        self, environment_id: str, name: str, argument: CommandSignal | SpecChange | NodePresence
    ) -> None:
        """Send one signal; returning means the server has it."""
        async with _deadline(COMMAND_SECONDS):
            await self._environment(environment_id).signal(name, argument)

    async def node_presence(self, environment_id: str, presence: NodePresence) -> None:
        """Tell an environment that its node came or went (design decision 14); if it is gone, nobody."""
        try:
            await self.signal(environment_id, "node_presence", presence)
        except NotFound:
            logger.info("node presence of %s not reported: no such workflow", environment_id)

    async def view(self, environment_id: str, seconds: float = QUERY_SECONDS) -> EnvironmentView:
        """The environment as its workflow sees it, every earlier signal included (design decision 1)."""
        async with _deadline(seconds):
            answer: EnvironmentView = await self._environment(environment_id).query(
                "status",
                # One that was terminated would go on answering, and saying `running`.
                reject_condition=QueryRejectCondition.NOT_OPEN,
                result_type=EnvironmentView,
                rpc_timeout=timedelta(seconds=seconds),
            )
            return answer

    async def timeline(self, environment_id: str) -> list[TimelineEntry]:
        """What the workflow still remembers of the timeline, oldest first."""
        async with _deadline(QUERY_SECONDS):
            answer: list[TimelineEntry] = await self._environment(environment_id).query(
                "timeline", result_type=list[TimelineEntry], rpc_timeout=timedelta(seconds=QUERY_SECONDS)
            )
            return answer

    async def await_settled(self, environment_id: str, request: AwaitSettled) -> EnvironmentView:
        """Wait until the command with the request id has been taken in and its outcome is known."""
        async with _deadline(request.timeout_seconds + QUERY_SECONDS):
            answer: EnvironmentView = await self._environment(environment_id).execute_update(
                "await_settled", request, result_type=EnvironmentView
            )
            return answer

    async def refresh_logs(self, environment_id: str) -> list[str]:
        """Read the container's log tail now.

        Raises:
            Conflict: they cannot be read in the present state.
        """
        async with _deadline(REFRESH_SECONDS):
            answer: list[str] = await self._environment(environment_id).execute_update(
                "refresh_logs", result_type=list[str]
            )
            return answer

    async def host_heartbeat(self, host_id: str, seconds: float) -> datetime | None:
        """When the host's monitor was last heard of: the heartbeat of its activity (design decision 5)."""
        async with _deadline(seconds):
            description = await self._client.get_workflow_handle(host_workflow_id(host_id)).describe()
        beats = [
            activity.last_heartbeat_time.ToDatetime(tzinfo=UTC)
            for activity in description.raw_description.pending_activities
            if activity.activity_type.name == HOST_MONITOR_ACTIVITY
            and activity.HasField("last_heartbeat_time")
        ]
        return max(beats, default=None)

    async def check(self) -> None:
        """Return when Temporal answers for our namespace."""
        async with _deadline(QUERY_SECONDS):
            await self._client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=self._client.namespace)
            )

    def _environment(self, environment_id: str) -> "WorkflowHandle[object, object]":
        return self._client.get_workflow_handle(environment_workflow_id(environment_id))


async def connect(ring: KeyRing | None = None) -> Workflows:
    """The workflows at the address Temporal's own variables name; does not wait for the server.

    Raises:
        ConfigurationError: the variables, or the file they name, do not hold what they should.
    """
    try:
        config = ClientConfig.load_client_connect_config()
        _check_address(config.setdefault("target_host", "localhost:7233"))
        return Workflows(await Client.connect(**config, plugins=[ControlPlanePlugin(ring)], lazy=True))
    except (RuntimeError, ValueError, OSError) as error:
        # What the bridge raises for a file it cannot parse and for an address that is none.
        raise ConfigurationError(
            f"Temporal's configuration (TEMPORAL_…): {str(error).splitlines()[0]}"
        ) from error


def _check_address(address: str) -> None:
    """Refuse now what a lazy connection would refuse at the first call. Raises: ValueError."""
    parts = urlsplit(f"//{address}")
    if not parts.hostname or not parts.port or address.split() != [address]:
        raise ValueError(f"TEMPORAL_ADDRESS {address!r} is not HOST:PORT")


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError:
        raise Unavailable(f"no answer from Temporal or its worker within {seconds:g} s") from None
    except WorkflowQueryRejectedError as error:
        if error.status is WorkflowExecutionStatus.CONTINUED_AS_NEW:
            raise Unavailable("no answer from Temporal or its worker") from error
        raise NotFound("there is no environment of that id") from error
    except RPCTimeoutOrCancelledError as error:
        raise Unavailable("no answer from Temporal or its worker") from error
    except WorkflowQueryFailedError as error:
        logger.warning("a workflow did not answer a query: %s", error)
        raise Unavailable("the environment's workflow does not answer") from error
    except WorkflowUpdateFailedError as error:
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == "AcceptedUpdateCompletedWorkflow":
            raise NotFound("the environment is gone") from error
        message = cause.message[:500] if isinstance(cause, ApplicationError) else "not possible now"
        if isinstance(cause, ApplicationError) and cause.type in HOST_CODES:
            raise Unavailable(message) from error
        raise Conflict(message) from error
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NotFound("there is no environment of that id") from error
        if error.status in (RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED):
            raise Unavailable("no answer from Temporal or its worker") from error
        logger.warning("Temporal refused a call: %s: %s", error.status.name, error.message)
        raise Unavailable(f"Temporal does not serve this now ({error.status.name.lower()})") from error
    except RuntimeError as error:
        # The bridge raises a bare RuntimeError when a lazy connection cannot be made.
        if "client connect" not in str(error):
            raise
        logger.warning("Temporal cannot be reached: %s", error)
        raise Unavailable("Temporal cannot be reached") from error


def _summary(text: str) -> str:
    return text.encode()[:_SUMMARY_BYTES].decode(errors="ignore")
