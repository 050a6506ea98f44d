"""The control worker: every workflow, and every activity that touches the inventory. `python -m workers.control`."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities.inventory import SqlControlActivities
from inventory.engine import make_engine
from models.identifiers import CONTROL_TASK_QUEUE
from models.settings import ControlSettings, load
from workers.lifecycle import configure_logging, connect, main, run_until_stopped
from workflows.environment import DesktopEnvironment
from workflows.host import DesktopHost

INVENTORY_ACTIVITIES = 32
"""Short SQL writes at once; PostgreSQL's default of 100 connections is shared with the api."""

WORKFLOW_TASKS = 16
"""Four a core on a small machine: mass replay after a restart must not trip the deadlock detector."""

STICKY = timedelta(seconds=3)
"""How long a task waits for the worker that has its workflow in memory: the SDK's 10 s are what every environment would
stand still for after that worker was killed. A busy worker's tasks that wait longer cost it a replay, nothing else."""

DRAIN = timedelta(seconds=10)
"""A SQL write in flight is given this long at shutdown."""


def build(client: Client, settings: ControlSettings) -> Worker:
    """The worker, not yet running."""
    activities = SqlControlActivities(make_engine(settings.inventory_url), client)
    return Worker(
        client,
        task_queue=CONTROL_TASK_QUEUE,
        workflows=[DesktopEnvironment, DesktopHost],
        activities=[
            activities.record_environment,
            activities.record_host,
            activities.register_node_token,
            activities.extend_node_token,
            activities.revoke_credentials,
            activities.notify_environments,
        ],
        activity_executor=ThreadPoolExecutor(INVENTORY_ACTIVITIES, thread_name_prefix="inventory"),
        max_cached_workflows=settings.max_cached_workflows,
        max_concurrent_workflow_tasks=WORKFLOW_TASKS,
        max_concurrent_activities=INVENTORY_ACTIVITIES,
        sticky_queue_schedule_to_start_timeout=STICKY,
        graceful_shutdown_timeout=DRAIN,
    )


async def run() -> None:
    """Serve until told to stop."""
    settings = load(ControlSettings)
    configure_logging(settings.log_level)
    worker = build(await connect(settings), settings)
    await run_until_stopped(worker, f"control worker polls task queue {CONTROL_TASK_QUEUE}")


if __name__ == "__main__":
    main(run)
