"""What Docker's description of a container says to us."""

import re
from datetime import datetime
from typing import Any

from activities.engine import Engine, Inspection
from activities.failures import failure
from activities.logs import log_tail
from models.errors import ErrorCode
from models.identifiers import LABEL_ENVIRONMENT, LABEL_GENERATION, LABEL_HOST

_NO_PROGRAM = re.compile(r"\[FATAL tini \(\d+\)\] exec .* failed: ")
"""Docker's init, when the image's command is not there, not executable, or for another processor."""


def is_ours(container: Inspection, host_id: str, environment_id: str) -> bool:
    """Whether this host made the container for this environment: its labels, whole."""
    marked = container["Config"].get("Labels") or {}
    return (
        marked.get(LABEL_HOST) == host_id
        and marked.get(LABEL_ENVIRONMENT) == environment_id
        and str(marked.get(LABEL_GENERATION, "")).isdecimal()
    )


def generation_of(container: Inspection) -> int:
    """The generation in the container's label."""
    return int(container["Config"]["Labels"][LABEL_GENERATION])


def published_port(container: Inspection, port: int) -> int:
    """The host's port behind a container's port; raises the failure `start_failed` where it is not
    published.
    """
    bindings = (container["NetworkSettings"].get("Ports") or {}).get(f"{port}/tcp") or []
    for binding in bindings:
        if str(binding.get("HostPort", "")).isdecimal():
            return int(binding["HostPort"])
    raise failure(ErrorCode.START_FAILED, f"Docker did not publish port {port}", phase="start_container")


def exited(engine: Engine, container: Inspection | None, phase: str, generation: int) -> Exception:
    """The failure `sandbox_exited` with exit code, out-of-memory flag and log tail. Raises
    `DOCKER_ERRORS`.
    """
    if container is None:
        message = "the container was removed from outside"
        return failure(ErrorCode.SANDBOX_EXITED, message, phase=phase, generation=generation)
    state: dict[str, Any] = container["State"]
    code, oom = state.get("ExitCode"), bool(state.get("OOMKilled"))
    lines = log_tail(engine, container["Id"]) or []
    if code in (126, 127) and (no_program := [line for line in lines if _NO_PROGRAM.match(line)]):
        message = f"the image cannot be run as a sandbox: {no_program[-1]}"
        return failure(
            ErrorCode.IMAGE_MISMATCH,
            message,
            phase=phase,
            generation=generation,
            exit_code=code,
            log_tail=lines,
        )
    message = (
        f"the sandbox ran out of memory (exit code {code})" if oom else f"the sandbox exited with code {code}"
    )
    if state.get("Error"):
        message += f": {' '.join(str(state['Error']).split())[:300]}"
    return failure(
        ErrorCode.SANDBOX_EXITED,
        message,
        phase=phase,
        generation=generation,
        exit_code=code,
        oom_killed=oom,
        log_tail=lines,
    )


def parse_docker_time(text: str) -> datetime:
    """A time as Docker writes it: RFC 3339 with up to nanoseconds."""
    whole, _, rest = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{whole}.{(rest + '000000')[:6]}+00:00")
