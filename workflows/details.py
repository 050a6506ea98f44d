"""What the Temporal Web UI shows of an environment under “current details”: Markdown, at no cost in events."""

from models.lifecycle import Operation
from workflows.state import EnvironmentState


def describe(state: EnvironmentState, operation: Operation | None, phase: str | None) -> str:
    """A few lines for an engineer who looks at the workflow."""
    situation = state.situation
    lines = [
        f"**{situation.status}**, desired {'running' if situation.desired_running else 'stopped'},"
        f" generation {state.generation}",
    ]
    if operation is not None:
        lines.append(f"in progress: {operation}" + (f" ({phase})" if phase else ""))
    if not situation.host_available:
        lines.append("waiting for the host")
    if state.last_error is not None:
        error = state.last_error
        lines.append(f"last error `{error.code}` in {error.phase or '?'}: {error.message}")
    if state.next_retry_at is not None:
        lines.append(f"next attempt at {state.next_retry_at:%H:%M:%S}Z, restarts {state.restarts}")
    if state.phases:
        lines.append("phases: " + ", ".join(f"{name} {ms:g} ms" for name, ms in state.phases.items()))
    lines.append("")
    lines += [
        f"- {entry.at:%H:%M:%S.%f} {entry.kind} **{entry.name}** {entry.message or ''}".rstrip()
        for entry in reversed(state.timeline[-12:])
    ]
    return "\n".join(lines)
