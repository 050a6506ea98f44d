"""The control activities: short writes to the inventory, and word to the environments of a host.

Each may be run again after any failure: writes are fenced by revision, generation or sequence (design
decisions 7 and 9). A database that is away is an error to repeat, told by its type.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session
from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.interface import ControlActivities
from inventory import audit, environments, hosts, node_tokens, pairings, takeover
from inventory.audit import ActorKind, Fact, Outcome
from inventory.engine import describe, is_unavailable, reading, writing
from models import identifiers
from models import messages as m

INVENTORY_UNAVAILABLE = "inventory_unavailable"
"""Type of the `ApplicationError` that says the database is away."""

_SIGNALS_AT_ONCE = 32
_SIGNAL_TIMEOUT = timedelta(seconds=10)


class SqlControlActivities(ControlActivities):
    """The control activities on SQL; everything but `notify_environments` runs in a thread.

    Args:
        engine: the inventory's.
        client: for the signals to environments.
    """

    def __init__(self, engine: Engine, client: Client) -> None:
        self._engine = engine
        self._client = client

    @activity.defn
    def record_environment(self, record: m.EnvironmentRecord) -> m.Recorded:
        """Write the projection unless a newer revision is there, the timeline entries that are not, and register or
        end the credentials it names, whatever the revision: they are fenced by their generation.
        """
        with _told_apart(), writing(self._engine) as session:
            now = _now()
            environments.record(session, record, now)
            known = environments.recorded(session, record.spec.environment_id)
            if record.revokes is not None:
                _revoke(session, record.revokes, now)
            if record.registers is not None:
                _register(session, record.registers, now)
            return known.model_copy(update={"credentials": True})

    @activity.defn
    def record_host(self, record: m.HostRecord) -> None:
        """Write what is known of a host unless a newer revision is there."""
        with _told_apart(), writing(self._engine) as session:
            hosts.record(session, record, _now())

    @activity.defn
    def register_node_token(self, request: m.RegisterNodeToken) -> None:
        """Make this token the environment's only live one; a repetition changes nothing."""
        with _told_apart(), writing(self._engine) as session:
            _register(session, request, _now())

    @activity.defn
    def extend_node_token(self, request: m.ExtendNodeToken) -> None:
        """Move the expiry of the live token of this generation; without one nothing happens."""
        with _told_apart(), writing(self._engine) as session:
            if node_tokens.extend(session, request):
                _audit(session, "node_token.extend", request, detail={"expires_at": request.expires_at})

    @activity.defn
    def revoke_credentials(self, request: m.RevokeCredentials) -> None:
        """End tokens and takeover sessions up to this generation, and the pairing when asked to."""
        with _told_apart(), writing(self._engine) as session:
            _revoke(session, request, _now())

    @activity.defn
    async def notify_environments(self, request: m.NotifyEnvironments) -> int:
        """Signal every live environment on a host; returns how many took the signal.

        Raises:
            RPCError: some could not be signalled, after all the others were.
        """
        ids = await asyncio.to_thread(self._live_ids, request.host_id)
        turns = asyncio.Semaphore(_SIGNALS_AT_ONCE)

        async def tell(environment_id: str) -> bool:
            async with turns:
                return await self._signal(environment_id, request.event)

        answers = await asyncio.gather(*map(tell, ids), return_exceptions=True)
        failures = [answer for answer in answers if isinstance(answer, BaseException)]
        if failures:
            raise failures[0]
        return sum(answer is True for answer in answers)

    def _live_ids(self, host_id: str) -> list[str]:
        with _told_apart(), reading(self._engine) as session:
            return environments.live_ids(session, host_id)

    async def _signal(self, environment_id: str, event: m.HostEvent) -> bool:
        handle = self._client.get_workflow_handle(identifiers.environment_workflow_id(environment_id))
        try:
            await handle.signal("host_event", event, rpc_timeout=_SIGNAL_TIMEOUT)
        except RPCError as error:
            # Deleted since the inventory was read, or not started yet: it has nothing to learn.
            if error.status is RPCStatusCode.NOT_FOUND:
                return False
            raise
        return True


def _register(session: Session, request: m.RegisterNodeToken, now: datetime) -> None:
    if node_tokens.register(session, request, now):
        detail = {"device_id": request.device_id, "expires_at": request.token.expires_at}
        _audit(session, "node_token.register", request, target=request.token.token_id, detail=detail)


def _revoke(session: Session, request: m.RevokeCredentials, now: datetime) -> None:
    ended = {
        "node_token.revoke": node_tokens.revoke_up_to(
            session, request.environment_id, request.generation, request.reason, now
        ),
        "takeover.end": takeover.revoke_up_to(session, request.environment_id, request.generation, now),
    }
    if request.pairing:
        ended["pairing.revoke"] = pairings.revoke_of_environment(
            session, request.environment_id, request.reason, now
        )
    for action, count in ended.items():
        if count:
            _audit(session, action, request, detail={"reason": request.reason, "count": count})


def _audit(
    session: Session,
    action: str,
    request: m.RegisterNodeToken | m.ExtendNodeToken | m.RevokeCredentials,
    target: str | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    fact = Fact(
        action=action,
        outcome=Outcome.ACCEPTED,
        actor_kind=ActorKind.SYSTEM,
        actor="workflow",
        environment_id=request.environment_id,
        generation=request.generation,
        target=target,
        detail=detail or {},
    )
    audit.append(session, fact, _now())


@contextmanager
def _told_apart() -> Iterator[None]:
    """A database that is away becomes one short line in history instead of a driver's stack."""
    try:
        yield
    except SQLAlchemyError as error:
        if not is_unavailable(error):
            raise
        raise ApplicationError(
            f"the inventory does not answer: {describe(error)}", type=INVENTORY_UNAVAILABLE
        ) from None


def _now() -> datetime:
    return datetime.now(UTC)
