"""``task.execute``: payload validation and routing to the desktop (node-protocol.md section 6)."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

_UUID: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    r"|0{8}(-0{4}){3}-0{12}|f{8}(-f{4}){3}-f{12}",
    re.IGNORECASE | re.ASCII,
)

#: A desktop operation: takes the action's args, returns the evidence object of section 6.3.
Operation = Callable[[dict[str, Any]], dict[str, Any]]


class InvalidRequest(Exception):
    """The payload breaks the schema of section 6.1; `issues` lists ``{path, message}`` objects."""

    def __init__(self, issues: list[dict[str, Any]]) -> None:
        super().__init__(
            "; ".join(f"{'.'.join(issue['path']) or 'payload'}: {issue['message']}" for issue in issues)
        )
        self.issues = issues


class TaskFailed(Exception):
    """The task could not be carried out; the message goes to the gateway as ``task_failed``."""


class Action:
    """The part of a valid ``task.execute`` payload that decides what happens."""

    __slots__ = ("args", "type")

    def __init__(self, kind: str, args: dict[str, Any]) -> None:
        self.type = kind
        self.args = args


def parse_action(payload: Any) -> Action:
    """Validate a ``task.execute`` payload.

    Raises:
        InvalidRequest: it breaks the schema.
    """
    if not isinstance(payload, dict):
        raise InvalidRequest([_issue("must be an object")])
    issues = [
        _issue("unknown key", str(key)) for key in payload if key not in ("dispatch_id", "turn_id", "action")
    ]
    if not _is_uuid(payload.get("dispatch_id")):
        issues.append(_issue("must be a UUID", "dispatch_id"))
    if "turn_id" in payload and not _is_uuid(payload["turn_id"]):
        issues.append(_issue("must be a UUID", "turn_id"))
    action = payload.get("action")
    if not isinstance(action, dict):
        issues.append(_issue("must be an object", "action"))
        raise InvalidRequest(issues)
    kind, args = action.get("type"), action.get("args", {})
    if not isinstance(kind, str) or not kind:
        issues.append(_issue("must be a non-empty string", "action", "type"))
    if not isinstance(args, dict):
        issues.append(_issue("must be an object", "action", "args"))
    if not isinstance(action.get("idempotency_key", ""), str):
        issues.append(_issue("must be a string", "action", "idempotency_key"))
    if issues:
        raise InvalidRequest(issues)
    return Action(str(kind), args)


def carry_out(action: Action, operations: Mapping[str, Operation]) -> dict[str, Any]:
    """Run `action` with the desktop `operations` by ``args.op``; returns ``{"evidence": …}`` (section 6.3).

    Raises:
        TaskFailed: no operation of that name, wrong args, or the desktop failed.
    """
    name = action.args.get("op")
    operation = operations.get(name) if action.type == "Desktop" and isinstance(name, str) else None
    if operation is None:
        wanted = f"{action.type} {name}" if isinstance(name, str) else action.type
        raise TaskFailed(f"no provider for capability {wanted[:128]}")
    return {"evidence": operation(action.args)}


def _is_uuid(value: Any) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _issue(message: str, *path: str) -> dict[str, Any]:
    return {"path": list(path), "message": message}
