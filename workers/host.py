"""The host worker: the activities of one runtime host, no workflows, no database. `python -m workers.host`."""

import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.service import RPCError
from temporalio.worker import Worker

from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from activities.temporal_link import TemporalLink, installation_id
from models.identifiers import CONTROL_TASK_QUEUE, host_task_queue, host_workflow_id, is_host_id, new_host_id
from models.messages import HostInput, HostRecord
from models.settings import ConfigurationError, HostSettings, load
from workers.lifecycle import configure_logging, connect, main, run_until_stopped
from workflows import policies
from workflows.host import DesktopHost

log = logging.getLogger(__name__)

HOST_ID_FILE = "runtime-state/desktop-runtime-host-id"
"""Where the host id is kept (protocol section 11.1): containers outlive the worker and carry it in a label."""

DRAIN = timedelta(seconds=5)
"""What a stop or a removal in flight is given at shutdown; everything is repeated where it was cut off."""

HEARTBEAT_EVERY = timedelta(milliseconds=300)
"""A cancellation reaches an activity with the answer to its heartbeat, so this bounds how long a delete waits."""


def host_id(settings: HostSettings) -> str:
    """The configured host id, or the one kept in the state directory, made on the first call.

    Raises:
        ConfigurationError: the file holds something else.
    """
    if settings.host_id:
        return settings.host_id
    path = settings.state_dir / HOST_ID_FILE
    try:
        kept = path.read_text().strip()
    except FileNotFoundError:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        kept = new_host_id()
        path.touch(mode=0o600)
        path.write_text(f"{kept}\n")
    if not is_host_id(kept):
        raise ConfigurationError(f"{path} does not hold a host id: remove it, or set DESKTOP_HOST_ID")
    return kept


def configuration(settings: HostSettings, installation: str) -> HostConfig:
    """What the activities are configured with."""
    return HostConfig(
        host_id=host_id(settings),
        state_dir=settings.state_dir,
        gateway_url=settings.gateway_url,
        gateway_ws_url=settings.gateway_ws_url,
        host_label=settings.host_label or f"desktop-runtime:{socket.gethostname()}",
        takeover_origin=settings.takeover_origin,
        network=settings.network,
        installation=installation,
        max_limits=settings.max_limits,
    )


def build(client: Client, config: HostConfig, max_activities: int) -> Worker:
    """The worker, not yet running."""
    activities = DockerHostActivities(config, TemporalLink(client, config.installation))
    return Worker(
        client,
        task_queue=host_task_queue(config.host_id),
        activities=[
            activities.ensure_image,
            activities.prepare_identity,
            activities.mint_node_token,
            activities.start_container,
            activities.await_node_pairing,
            activities.capture_logs,
            activities.remove_container,
            activities.wipe_runtime,
            activities.monitor_host,
        ],
        activity_executor=ThreadPoolExecutor(max_activities, thread_name_prefix="host"),
        max_concurrent_activities=max_activities,
        max_heartbeat_throttle_interval=HEARTBEAT_EVERY,
        default_heartbeat_throttle_interval=HEARTBEAT_EVERY,
        graceful_shutdown_timeout=DRAIN,
    )


async def register(client: Client, config: HostConfig) -> None:
    """Have the host's workflow running (design decision 5)."""
    await client.start_workflow(
        DesktopHost.run,
        HostInput(
            record=HostRecord(
                host_id=config.host_id,
                label=config.host_label,
                takeover_origin=config.takeover_origin,
                max_limits=config.max_limits,
            )
        ),
        id=host_workflow_id(config.host_id),
        task_queue=CONTROL_TASK_QUEUE,
        task_timeout=policies.WORKFLOW_TASK,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        static_summary=config.host_label[:180],
    )


async def run() -> None:
    """Serve until told to stop."""
    settings = load(HostSettings)
    configure_logging(settings.log_level)
    client = await connect(settings)
    try:
        config = configuration(settings, await installation_id(client))
        await register(client, config)
    except RPCError as error:
        raise ConfigurationError(f"Temporal refuses this host: {error.message}") from error
    worker = build(client, config, settings.max_activities)
    await run_until_stopped(worker, f"host worker {config.host_id} polls {host_task_queue(config.host_id)}")


if __name__ == "__main__":
    main(run)
