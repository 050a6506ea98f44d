"""Every refusal in one shape: `{"error": code, "message": text}` (design section 5).

What is not an `ApiError` becomes one here: validation, unknown routes, unreadable bodies, an inventory that
does not answer. What is left is a defect: logged with an id, answered with the id and nothing else.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inventory.engine import describe, is_unavailable
from models.errors import ApiError, Conflict, Forbidden, InvalidRequest, NotFound, Unauthorized, Unavailable

logger = logging.getLogger(__name__)

_BY_STATUS: dict[int, type[ApiError]] = {
    kind.status_code: kind
    for kind in (InvalidRequest, Unauthorized, Forbidden, NotFound, Conflict, Unavailable)
}


class ErrorBody(BaseModel):
    """A refused request."""

    error: str = Field(description="Stable code.", examples=["not_found"])
    message: str = Field(description="What happened, to what, and what to do.")


def responses(*kinds: type[ApiError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI declaration of what a route can refuse with."""
    return {
        kind.status_code: {
            "model": ErrorBody,
            "description": (kind.__doc__ or kind.code).splitlines()[0],
            "content": {"application/json": {"example": {"error": kind.code, "message": "…"}}},
        }
        for kind in kinds
    }


def code_of(status_code: int) -> str:
    """The code that goes with a status."""
    kind = _BY_STATUS.get(status_code)
    if kind is not None:
        return kind.code
    return InvalidRequest.code if status_code < 500 else "internal"


def error_response(
    status_code: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """One refusal on the wire."""
    return JSONResponse({"error": code, "message": message}, status_code, headers=dict(headers or {}))


def response_for(error: ApiError) -> JSONResponse:
    """An `ApiError` on the wire; 401 names the scheme and 503 says when to come back."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    return error_response(error.status_code, error.code, error.message, headers)


def install(app: Starlette) -> None:
    """Give `app` the handlers; `ErrorBoundary` around it catches what they do not."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


class ErrorBoundary:
    """The outermost layer: turns whatever an application raises before it answered into the error shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answered = False

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if answered or scope["type"] != "http":
                raise
            await _response_for_any(error)(scope, receive, send)


def validation_message(errors: Sequence[Any]) -> str:
    """What is wrong with a request, naming each field, never repeating its value."""
    parts = [_one_problem(error) for error in errors[:5]]
    return "; ".join(parts) or "the request is not of the documented form"


def _one_problem(error: Mapping[str, Any]) -> str:
    kind = error.get("type", "")
    place, *rest = [str(part) for part in error.get("loc", ())] or ["request"]
    if kind == "json_invalid":
        return "the body is not valid JSON"
    if kind in ("model_attributes_type", "dict_type") and not rest:
        return "the body must be a JSON object, sent with Content-Type: application/json"
    if kind == "missing" and not rest:
        return "a JSON body is required"
    name = ".".join(rest)[:200] or place
    if kind == "extra_forbidden":
        return f"unknown field {name!r}"
    if kind == "missing":
        return f"{name}: is required"
    message = str(error.get("msg", "is not valid")).removeprefix("Value error, ")
    return f"{name}: {message}"


def _response_for_any(error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        return response_for(error)
    if is_unavailable(error):
        logger.warning("the inventory does not answer: %s", describe(error))
        return response_for(Unavailable("the inventory does not answer; try again"))
    incident = uuid4().hex[:12]
    logger.error("unexpected error %s", incident, exc_info=error)
    return error_response(500, "internal", f"unexpected error; the log has it under {incident}")


async def _on_api_error(_request: Request, error: Exception) -> JSONResponse:
    return response_for(cast(ApiError, error))


async def _on_validation_error(_request: Request, error: Exception) -> JSONResponse:
    return response_for(InvalidRequest(validation_message(cast(RequestValidationError, error).errors())))


async def _on_http_exception(request: Request, raised: Exception) -> JSONResponse:
    error = cast(HTTPException, raised)
    if isinstance(error.__cause__, ApiError):
        return response_for(error.__cause__)
    if error.status_code == 404:
        return response_for(NotFound("there is no such route"))
    if error.status_code == 405:
        message = f"{request.method} is not a method of this route"
        return error_response(405, InvalidRequest.code, message, error.headers)
    if error.status_code == 400:
        return response_for(InvalidRequest("the body cannot be read as JSON"))
    kind = _BY_STATUS.get(error.status_code)
    code = kind.code if kind else InvalidRequest.code
    return error_response(error.status_code, code, str(error.detail), error.headers)
