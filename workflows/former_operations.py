"""Operations as environments began them before credentials went with the records: one activity for each.

For histories of those days, which are replayed, and their workflows, which go on like this until they continue as new.
When none is left (`docs/architecture.md`, “Changing a workflow safely”) this file goes, and with it
`workflow.patched` and all that hangs on `_as_formerly` in `environment.py`.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities, HostActivities
    from models import messages as m
    from models.lifecycle import Operation
    from workflows import policies
    from workflows.operations import Failure, Operations

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class FormerOperations(Operations):
    """The operations, with a record before each, and credentials apart."""

    def records(self, operation: Operation) -> bool:
        """The loop records before each."""
        return False

    async def _new_generation(self) -> m.ContainerStarted:
        state = self._state
        environment_id = state.spec.environment_id
        state.generation += 1
        state.phases = {}
        generation = state.generation
        began = workflow.now()
        image, identity, token = await _all(
            self._ensure_image(),
            self._on_host(
                HostActivities.prepare_identity,
                m.PrepareIdentity(
                    environment_id=environment_id, generation=generation, rotate=state.rotate_identity
                ),
                policies.FILES,
                "make or read the device identity",
                phase=False,
            ),
            self._mint(),
        )
        self._timed("prepare", began)
        self._note_pull(image)
        if state.device_id not in (None, identity.device_id):
            self._note("credential", "identity_replaced", node_id=identity.device_id)
        state.rotate_identity = False
        state.device_id = identity.device_id
        state.token = token
        await self._in_inventory(
            ControlActivities.register_node_token,
            m.RegisterNodeToken(
                environment_id=environment_id,
                generation=generation,
                device_id=identity.device_id,
                public_key=identity.public_key,
                token=token,
            ),
            f"register the node token of generation {generation}",
        )
        return await self._start_container()

    async def _revoke(self, reason: str, *, pairing: bool = False) -> None:
        state = self._state
        if state.token is None and not pairing:
            return
        await self._in_inventory(
            ControlActivities.revoke_credentials,
            m.RevokeCredentials(
                environment_id=state.spec.environment_id,
                generation=state.generation,
                reason=reason,
                pairing=pairing,
            ),
            f"revoke credentials up to generation {state.generation}",
        )
        if state.token is not None:
            self._note("credential", "credentials_revoked", message=reason)
        state.token = None
        state.node_lost_at = None

    def _failed(self, error: ActivityError, phase: str) -> BaseException:
        failed = super()._failed(error, phase)
        if isinstance(failed, Failure):
            # Formerly every error was tried again that its code did not say was lasting.
            failed.error = failed.error.model_copy(update={"lasting": False})
        return failed


async def _all(
    first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B], third: Coroutine[Any, Any, C]
) -> tuple[A, B, C]:
    """All results, once all have ended; the first failure otherwise. Nothing is left running behind a failure."""
    a, b, c = await asyncio.gather(first, second, third, return_exceptions=True)
    for result in (a, b, c):
        if isinstance(result, BaseException):
            raise result
    return cast("tuple[A, B, C]", (a, b, c))
