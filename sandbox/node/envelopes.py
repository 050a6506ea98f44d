"""Strict message envelopes (node-protocol.md section 2)."""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

_REQUEST_KEYS: Final = {"request_id", "type", "payload", "trace"}
_OK_KEYS: Final = {"request_id", "type", "ok", "result"}
_FAILURE_KEYS: Final = {"request_id", "type", "ok", "error"}
_EVENT_KEYS: Final = {"event_id", "type", "occurred_at", "payload", "scope"}
_ERROR_KEYS: Final = {"code", "message", "details"}
_DATE_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?Z", re.ASCII)


class EnvelopeError(ValueError):
    """A frame that is no valid envelope; the protocol drops such frames silently."""


@dataclass(frozen=True)
class Request:
    """A request from the gateway."""

    request_id: str
    type: str
    payload: Any


@dataclass(frozen=True)
class Response:
    """An answer from the gateway: `result` when `ok`, else the error's `code` and `message`."""

    request_id: str
    type: str
    ok: bool
    result: Any = None
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class Event:
    """An event from the gateway."""

    event_id: str
    type: str
    payload: Any


def parse(text: str) -> Request | Response | Event:
    """Classify one text frame as section 2.2 does: ``ok`` marks a response, ``event_id`` an event.

    Raises:
        EnvelopeError: not JSON, or not exactly one of the shapes of section 2.1.
    """
    try:
        message = json.loads(text, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise EnvelopeError("not JSON") from error
    if not isinstance(message, dict):
        raise EnvelopeError("not an object")
    if "ok" in message:
        return _response(message)
    if "event_id" in message:
        return _event(message)
    _only(message, _REQUEST_KEYS)
    if "payload" not in message:
        raise EnvelopeError("payload is missing")
    return Request(_text(message, "request_id"), _text(message, "type"), message["payload"])


def request(request_id: str, kind: str, payload: Any) -> str:
    """A request frame."""
    return _frame({"request_id": request_id, "type": kind, "payload": payload})


def success(request_id: str, kind: str, result: Any = None) -> str:
    """An ``ok: true`` frame; a `result` of None is left out."""
    message = {"request_id": request_id, "type": kind, "ok": True}
    return _frame(message if result is None else {**message, "result": result})


def failure(request_id: str, kind: str, code: str, message: str, details: Any = None) -> str:
    """An ``ok: false`` frame; `code` and `message` must not be empty."""
    error = {"code": code, "message": message}
    if details is not None:
        error["details"] = details
    return _frame({"request_id": request_id, "type": kind, "ok": False, "error": error})


def _frame(message: dict[str, Any]) -> str:
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _only(message: dict[str, Any], allowed: set[str]) -> None:
    if not message.keys() <= allowed:
        raise EnvelopeError("unknown key")


def _text(message: dict[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or not value:
        raise EnvelopeError(f"{key} must be a non-empty string")
    return value


def _response(message: dict[str, Any]) -> Response:
    request_id, kind = _text(message, "request_id"), _text(message, "type")
    if message["ok"] is True:
        _only(message, _OK_KEYS)
        return Response(request_id, kind, ok=True, result=message.get("result"))
    if message["ok"] is not False:
        raise EnvelopeError("ok must be a boolean")
    _only(message, _FAILURE_KEYS)
    error = message.get("error")
    if not isinstance(error, dict):
        raise EnvelopeError("error must be an object")
    _only(error, _ERROR_KEYS)
    return Response(request_id, kind, ok=False, code=_text(error, "code"), message=_text(error, "message"))


def _event(message: dict[str, Any]) -> Event:
    _only(message, _EVENT_KEYS)
    if "payload" not in message:
        raise EnvelopeError("payload is missing")
    if message.get("scope", {}) is None:
        raise EnvelopeError("scope must not be null")
    if not _DATE_TIME.fullmatch(_text(message, "occurred_at")):
        raise EnvelopeError("occurred_at must be an ISO date-time ending in Z")
    return Event(_text(message, "event_id"), _text(message, "type"), message["payload"])
