"""The workflow of one runtime host (design decision 5).

It keeps one long activity, `monitor_host`, alive on the host. That activity's Temporal heartbeat is the host's
heartbeat; its end without a prompt new beginning is the host's loss, and its new beginning is the host's return.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

from temporalio import workflow
from temporalio.common import RawValue
from temporalio.exceptions import ActivityError, FailureError, is_cancelled_exception
from temporalio.workflow import ActivityConfig

with workflow.unsafe.imports_passed_through():
    from activities.interface import ControlActivities, HostActivities
    from models import messages as m
    from models.errors import ErrorCode
    from models.identifiers import host_task_queue, host_workflow_id
    from workflows import policies
    from workflows.calls import in_inventory
    from workflows.inputs import read_input


_NO_INPUT = m.HostInput(record=m.HostRecord(host_id=""))


def _workflow_id(start: m.HostInput) -> str:
    return host_workflow_id(start.record.host_id)


@workflow.defn(name="DesktopHost")
class DesktopHost:
    """One runtime host, recorded and watched for as long as it exists."""

    @workflow.init
    def __init__(self, *payloads: Any) -> None:
        start, self._refusal = read_input(_NO_INPUT, payloads, _workflow_id)
        self._record = start.record
        self._reports: list[m.HostRecord] = []
        # A loss and a return that are told at the same time would reach an environment in either order.
        self._telling = asyncio.Lock()
        self._told_available = start.record.healthy and start.record.docker_available
        self._watchdog: asyncio.Task[None] | None = None

    @workflow.run
    async def run(self, *payloads: Any) -> None:
        """Live until cancelled by hand. Takes one `models.messages.HostInput`; anything else fails at once."""
        if self._refusal is not None:
            raise self._refusal
        await self._write()
        monitor: asyncio.Task[None] | None = None
        try:
            while True:
                monitor = asyncio.create_task(self._monitor())
                while not monitor.done():
                    self._show()
                    await workflow.wait_condition(partial(self._stirred, monitor))
                    await self._take_in()
                    if workflow.info().is_continue_as_new_suggested() and not monitor.done():
                        monitor.cancel()
                        await asyncio.wait([monitor])
                await self._take_in()
                if workflow.info().is_continue_as_new_suggested():
                    workflow.continue_as_new(m.HostInput(record=self._record))
        except asyncio.CancelledError:
            if workflow.cancellation_reason() is None:
                # Not a request but the worker dropping this instance from its cache.
                raise
            if monitor is not None:
                monitor.cancel()
            await self._lost("the host's workflow was cancelled")

    def _stirred(self, monitor: "asyncio.Task[None]") -> bool:
        return monitor.done() or bool(self._reports) or workflow.info().is_continue_as_new_suggested()

    async def _monitor(self) -> None:
        """Run the monitor on the host until it ends, and declare the host lost if it does not begin again in time."""
        if self._watchdog is None or self._watchdog.done():
            # One that still waits goes on: a monitor that fails before its first report is no return.
            self._watchdog = asyncio.create_task(self._watch_for_return())
        began = workflow.now()
        try:
            await workflow.execute_activity_method(
                HostActivities.monitor_host,
                m.MonitorHost(host_id=self._record.host_id),
                **_monitor_config(self._record.host_id),
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            if workflow.now() - began < policies.MONITOR_RETRY:
                await workflow.sleep(policies.MONITOR_RETRY, summary="before the monitor is begun again")

    async def _watch_for_return(self) -> None:
        seen = self._record.last_seen_at
        try:
            await workflow.wait_condition(
                lambda: self._record.last_seen_at != seen,
                timeout=policies.HOST_RETURN_GRACE,
                timeout_summary="the host's time to return",
            )
        except TimeoutError:
            async with self._telling:
                if self._record.last_seen_at == seen:
                    await self._lost("the host's worker does not answer")

    async def _lost(self, reason: str) -> None:
        if not self._record.healthy:
            return
        self._record = self._record.model_copy(
            update={"healthy": False, "docker_available": False, "last_error": reason}
        )
        await self._write()
        await self._notify("lost", ErrorCode.HOST_UNREACHABLE, reason)

    async def _take_in(self) -> None:
        if not self._reports:
            return
        async with self._telling:
            await self._take_in_reports()

    async def _take_in_reports(self) -> None:
        while self._reports:
            report = self._reports.pop(0)
            before, self._record = (
                self._record,
                report.model_copy(
                    update={
                        "host_id": self._record.host_id,
                        "healthy": True,
                        "revision": self._record.revision,
                        "last_seen_at": workflow.now(),
                    }
                ),
            )
            await self._write()
            if report.docker_available and not (self._told_available and before.healthy):
                await self._notify("restored", ErrorCode.HOST_UNREACHABLE, "")
            elif not report.docker_available and (self._told_available or before.docker_available):
                await self._notify(
                    "lost",
                    ErrorCode.DOCKER_UNAVAILABLE,
                    report.last_error or "the Docker engine does not answer",
                )

    async def _write(self) -> None:
        # Above what an earlier run of this workflow id recorded, too: a reset by hand starts the count anew.
        revision = max(self._record.revision + 1, int(workflow.now().timestamp() * 1000))
        self._record = self._record.model_copy(update={"revision": revision})
        health = "healthy" if self._record.healthy else "unhealthy"
        try:
            await in_inventory(
                ControlActivities.record_host,
                self._record,
                policy=policies.INVENTORY,
                summary=f"record the host {health}",
            )
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise asyncio.CancelledError from error
            # A bug: the host is watched all the same, and the next record may pass.
            workflow.logger.error("the inventory refuses the host's record", exc_info=error)

    async def _notify(self, event: str, code: ErrorCode, message: str) -> None:
        request = m.NotifyEnvironments(
            host_id=self._record.host_id,
            event=m.HostEvent(
                event="lost" if event == "lost" else "restored", code=code, message=message, at=workflow.now()
            ),
        )
        config: ActivityConfig = {**policies.NOTIFY, "summary": f"tell the environments: host {event}"}
        attempts = 0
        self._told_available = event == "restored"
        while True:
            try:
                await workflow.execute_activity_method(
                    ControlActivities.notify_environments, request, **config
                )
                return
            except FailureError as error:
                if is_cancelled_exception(error):
                    raise asyncio.CancelledError from error
                workflow.logger.error("some environments could not be told", exc_info=error)
            attempts += 1
            with contextlib.suppress(TimeoutError):
                await workflow.wait_condition(
                    lambda: bool(self._reports),
                    timeout=policies.doubling(attempts, policies.PROJECTION_WAIT_MAX),
                    timeout_summary="until the environments are told again",
                )
                # What the host says now comes first; what it asks to be told replaces this.
                self._told_available = not self._told_available
                return

    def _show(self) -> None:
        record = self._record
        health = "healthy" if record.healthy else "unhealthy"
        docker = f"Docker {record.version}" if record.docker_available else "Docker does not answer"
        trouble = f"\n\nlast error: {record.last_error}" if record.last_error else ""
        workflow.set_current_details(f"**{health}**, {docker}{trouble}")

    @workflow.signal(description="From the host: its own report, at each beginning and on each change")
    def docker_health(self, report: m.HostRecord) -> None:
        """`models.messages.HostRecord`."""
        self._reports.append(report)

    @workflow.signal(dynamic=True, description="Any other name is ignored")
    def unknown(self, name: str, payloads: Sequence[RawValue]) -> None:
        """A signal nobody knows, typed by hand: survived."""

    @workflow.query(description="The host as recorded")
    def status(self) -> m.HostRecord:
        """`models.messages.HostRecord`."""
        return self._record


def _monitor_config(host_id: str) -> ActivityConfig:
    return {
        **policies.MONITOR,
        "task_queue": host_task_queue(host_id),
        "summary": "watch the Docker engine; its heartbeat is the host's",
    }
