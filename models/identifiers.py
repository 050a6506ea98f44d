"""Workflow ids, task queues, container names and the other names two parts must agree on, in one place."""

import re
from uuid import UUID, uuid4

CONTROL_TASK_QUEUE = "control"
"""Task queue of the workflows and the control activities (design section 2)."""

SEARCH_ATTRIBUTE_STATUS = "EnvironmentStatus"
SEARCH_ATTRIBUTE_HOST = "EnvironmentHost"

LABEL_ENVIRONMENT = "tyrum.desktop_environment_id"
"""Docker label with the environment id (protocol section 8.2)."""
LABEL_HOST = "tyrum.desktop_environment_host_id"
"""Docker label with the host id (protocol section 8.2)."""
LABEL_GENERATION = "tyrum.desktop_environment_generation"
"""Docker label with the generation (design decision 7)."""
LABEL_INSTALLATION = "tyrum.desktop_environment_installation"
"""Docker label with the installation: the id of the Temporal namespace that knows the environment (decision 10)."""

_CONTAINER_PREFIX = "tyrum-desktop-env-"
_ENVIRONMENT_WORKFLOW_PREFIX = "desktop-environment/"
_HOST_WORKFLOW_PREFIX = "desktop-host/"


def new_environment_id() -> str:
    """A fresh environment id: a lower-case UUIDv4."""
    return str(uuid4())


def new_host_id() -> str:
    """A fresh runtime host id, to be persisted by the host (protocol section 11.1)."""
    return f"desktop-host-{uuid4()}"


def is_environment_id(text: str) -> bool:
    """Whether `text` is an environment id in its one canonical spelling."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def is_host_id(text: str) -> bool:
    """Whether `text` can be a host id: it reaches queue names, labels and file names."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", text) is not None


def environment_workflow_id(environment_id: str) -> str:
    """Id of the environment's workflow (design decision 2)."""
    return f"{_ENVIRONMENT_WORKFLOW_PREFIX}{environment_id}"


def host_workflow_id(host_id: str) -> str:
    """Id of the runtime host's workflow (design decision 5)."""
    return f"{_HOST_WORKFLOW_PREFIX}{host_id}"


def host_task_queue(host_id: str) -> str:
    """Task queue that only this host's worker polls (design section 2)."""
    return f"runtime-host:{host_id}"


def container_name(environment_id: str) -> str:
    """Name of the environment's container (protocol section 8.2).

    It carries no generation on purpose: Docker refuses a second container of one name, so an environment cannot have
    two. The generation is in the label.
    """
    return f"{_CONTAINER_PREFIX}{re.sub(r'[^A-Za-z0-9_.-]+', '-', environment_id)[:40]}"
