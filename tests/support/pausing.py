"""`docker pause` that takes."""

import time

import docker
from docker.errors import APIError


def pause(engine: docker.APIClient, container: str, seconds: float = 30) -> None:
    """Pause a container, trying again while the kernel does not get all its processes to stand still.

    On a busy machine with cgroup v1 runc gives up after some tries, thaws what it froze, and leaves trying again to
    its caller (opencontainers/runc#4388).

    Raises:
        APIError: the engine refused for another reason, or still could not freeze it after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            engine.pause(container)
            return
        except APIError as error:
            if "unable to freeze" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.05)
