"""Health check of a worker's container: does somebody poll its task queue? `python -m scripts.worker_health QUEUE`.

It sees what the Temporal server sees. Two workers on one queue vouch for each other; the host worker is alone on its
own queue.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime, timedelta

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.client import Client
from temporalio.envconfig import ClientConfig

_RECENT = timedelta(seconds=90)
"""A long poll lasts about a minute, so a live worker was seen at most that long ago."""
_TIMEOUT = timedelta(seconds=5)


async def polled(queue: str) -> bool:
    """Whether a worker has polled the queue for activities of late."""
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    client = await Client.connect(**config)
    request = DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue=TaskQueue(name=queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    answer = await client.workflow_service.describe_task_queue(request, timeout=_TIMEOUT)
    oldest = datetime.now(UTC) - _RECENT
    return any(poller.last_access_time.ToDatetime(UTC) > oldest for poller in answer.pollers)


def main() -> int:
    """Returns 0 when the queue is polled."""
    if len(sys.argv) != 2:
        print("usage: worker_health QUEUE", file=sys.stderr)
        return 2
    try:
        healthy = asyncio.run(asyncio.wait_for(polled(sys.argv[1]), 2 * _TIMEOUT.total_seconds()))
    except Exception as error:  # whatever goes wrong, the answer is the same
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    if not healthy:
        print(f"unhealthy: no worker polls {sys.argv[1]}", file=sys.stderr)
    return 0 if healthy else 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # The SDK's native threads can abort the interpreter while it finalises (temporal sdk-python issue 300).
    os._exit(code)
