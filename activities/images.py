"""Having an image on the host: looked up first, pulled when missing, refused when no sandbox can be made of
it.
"""

import time
from collections.abc import Iterator
from typing import Any

import requests
from docker import auth
from docker.errors import APIError, ImageNotFound, NotFound, create_api_error_from_http_exception
from docker.utils import parse_repository_tag
from docker.utils.json_stream import json_stream

from activities.engine import DOCKER_ERRORS, Engine, docker_failure, readable
from activities.failures import failure
from activities.steps import Step
from models.errors import ErrorCode
from models.messages import ImageReady

STALL_SECONDS = 120
"""A pull that reports nothing for so long is given up; the next attempt goes on with the layers already
here.
"""

RUNS_AS_WELL = {"amd64": {"386"}, "arm64": {"arm"}}
"""Other architectures whose programs an engine of this architecture runs natively."""

UNREACHABLE_WAITS = (0.5, 1.5)
"""Seconds between attempts to reach a registry that does not answer."""

_UNREACHABLE_WORDS = (
    "no such host",
    "dial tcp",
    "timeout",
    "connection re",
    "i/o ",
    "tls:",
    "server misbehaving",
)
_MISSING_WORDS = (
    "not found",
    "unknown",
    "denied",
    "unauthorized",
    "does not exist",
    "no such image",
    "invalid reference",
    "invalid repository",
    "invalid tag",
)
_PHASE = "ensure_image"


class RegistryUnreachable(Exception):
    """The registry did not answer; the message is Docker's."""


def ready_image(engine: Engine, image_ref: str, generation: int) -> ImageReady | None:
    """The image where it is on the host and can be used as it is; None where `ensure_image` has something to do, or
    something to say.

    Raises:
        ApplicationError: `docker_unavailable` or `start_failed`.
    """
    if not image_ref.strip():
        return None
    try:
        architecture = engine.architecture()
        image = inspect_image(engine, image_ref)
    except DOCKER_ERRORS as error:
        raise docker_failure(error, _PHASE, generation) from error
    if image is None or _no_sandbox(image, image_ref, architecture) is not None:
        return None
    return ImageReady(image_id=image["Id"], user=image_user(image))


def ensure_image(engine: Engine, image_ref: str, generation: int, step: Step) -> ImageReady:
    """Look the image up, pull it when it is missing or of another platform.

    Raises:
        ApplicationError: `image_not_found`, `image_mismatch`, `docker_unavailable` or `start_failed`.
    """
    if not image_ref.strip():
        raise _missing(image_ref, generation, "no name given")
    try:
        architecture = engine.architecture()
        image = inspect_image(engine, image_ref)
        pulled, began = False, time.monotonic()
        if image is None or not _fits(image, architecture):
            _pull(engine, image_ref, architecture if image is not None else None, generation, step)
            pulled = True
            image = inspect_image(engine, image_ref)
    except DOCKER_ERRORS as error:
        raise docker_failure(error, _PHASE, generation) from error
    if image is None:
        raise _missing(image_ref, generation, "it was pulled, and is not there")
    _refuse_what_is_no_sandbox(image, image_ref, architecture, generation)
    pull_ms = (time.monotonic() - began) * 1000 if pulled else 0
    return ImageReady(image_id=image["Id"], user=image_user(image), pulled=pulled, pull_ms=round(pull_ms, 1))


def inspect_image(engine: Engine, image_ref: str) -> dict[str, Any] | None:
    """Docker's description of an image; None where it is not on the host. Raises `DOCKER_ERRORS`."""
    try:
        found: dict[str, Any] = engine.look.inspect_image(image_ref)  # type: ignore[no-untyped-call]  # so in the stubs
        return found
    except (ImageNotFound, NotFound):
        return None
    except APIError as error:
        if error.status_code == 400:
            return None
        raise


def image_user(image: dict[str, Any]) -> str:
    """The user the image is configured for; empty for root."""
    user = str((image.get("Config") or {}).get("User") or "")
    return "" if user.split(":", maxsplit=1)[0] in ("root", "0") else user


def _fits(image: dict[str, Any], architecture: str) -> bool:
    kinds = {architecture, "", *RUNS_AS_WELL.get(architecture, set())}
    return image.get("Os", "linux") in ("linux", "") and image.get("Architecture", "") in kinds


def _refuse_what_is_no_sandbox(
    image: dict[str, Any], image_ref: str, architecture: str, generation: int
) -> None:
    message = _no_sandbox(image, image_ref, architecture)
    if message is not None:
        raise failure(ErrorCode.IMAGE_MISMATCH, message, phase=_PHASE, generation=generation)


def _no_sandbox(image: dict[str, Any], image_ref: str, architecture: str) -> str | None:
    """Why no sandbox can be made of the image; None where one can."""
    if not _fits(image, architecture):
        platform = f"{image.get('Os')}/{image.get('Architecture')}"
        return f"image {image_ref} is for {platform}, this host runs linux/{architecture}"
    config = image.get("Config") or {}
    if not config.get("Cmd") and not config.get("Entrypoint"):
        return f"image {image_ref} starts no command of its own, so it cannot be a sandbox"
    return None


def _missing(image_ref: str, generation: int, detail: str) -> Exception:
    message = (
        f"image {image_ref} is neither on the host nor to be pulled: check its name and tag, that the host reaches "
        f"its registry, and `docker login` for a private one ({detail})"
    )
    return failure(ErrorCode.IMAGE_NOT_FOUND, message, phase=_PHASE, generation=generation)


def _pull(engine: Engine, image_ref: str, architecture: str | None, generation: int, step: Step) -> None:
    for wait in (*UNREACHABLE_WAITS, None):
        try:
            _pull_once(engine, image_ref, architecture, generation, step)
            return
        except RegistryUnreachable as error:
            if wait is None and architecture is not None:
                # It is here, and wrong.
                return
            if wait is None:
                # Nothing tells "no such registry" from "not now"; the operator is told, and may start again.
                raise _missing(image_ref, generation, str(error)) from error
            step.progress = f"pulling {image_ref}: its registry cannot be reached, trying again"
            step.wait(wait)


def _pull_once(engine: Engine, image_ref: str, architecture: str | None, generation: int, step: Step) -> None:
    step.progress = f"pulling {image_ref}"
    layers: dict[str, tuple[int, int]] = {}
    try:
        for line in _pull_lines(engine, image_ref, architecture):
            step.check()
            if "error" in line:
                raise _refused(str(line["error"]), image_ref, architecture, generation)
            step.progress = _progress(image_ref, layers, line)
    except APIError as error:
        raise _refused(readable(error), image_ref, architecture, generation) from error
    except requests.exceptions.ConnectionError as error:
        # A read timeout in the middle of a stream arrives as this; the engine answered before: it is the
        # registry.
        if "timed out" not in str(error).lower():
            raise
        message = f"pulling {image_ref}: no progress for {STALL_SECONDS} s"
        raise failure(ErrorCode.START_FAILED, message, phase=_PHASE, generation=generation) from error


def _refused(text: str, image_ref: str, architecture: str | None, generation: int) -> Exception:
    lower = text.lower()
    if any(word in lower for word in _UNREACHABLE_WORDS):
        return RegistryUnreachable(text)
    if architecture is not None:
        message = (
            f"image {image_ref} is for another platform, and none for linux/{architecture} exists: {text}"
        )
        return failure(ErrorCode.IMAGE_MISMATCH, message, phase=_PHASE, generation=generation)
    if "no matching manifest" in lower or "cannot be used on this platform" in lower:
        message = f"image {image_ref} is not made for this host: {text}"
        return failure(ErrorCode.IMAGE_MISMATCH, message, phase=_PHASE, generation=generation)
    if any(word in lower for word in _MISSING_WORDS):
        return _missing(image_ref, generation, text)
    return failure(
        ErrorCode.START_FAILED, f"pulling {image_ref}: {text}", phase=_PHASE, generation=generation
    )


def _pull_lines(engine: Engine, image_ref: str, architecture: str | None) -> Iterator[dict[str, Any]]:
    # APIClient.pull() waits for ever on a registry that falls silent; the same call with a deadline between
    # lines.
    client = engine.work
    repository, tag = parse_repository_tag(image_ref)
    registry, _ = auth.resolve_repository_name(repository)
    headers = {}
    if credentials := auth.get_config_header(client, registry):
        headers["X-Registry-Auth"] = credentials
    parameters = {"fromImage": repository, "tag": tag or "latest"}
    if architecture is not None:
        parameters["platform"] = f"linux/{architecture}"
    response = client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params=parameters,
        headers=headers,
        stream=True,
        timeout=STALL_SECONDS,
    )
    with response:
        try:
            response.raise_for_status()
        except requests.exceptions.HTTPError as error:
            create_api_error_from_http_exception(error)
        for line in json_stream(part.decode("utf-8", "replace") for part in response.iter_content(4096)):
            if isinstance(line, dict):
                yield line


def _progress(image_ref: str, layers: dict[str, tuple[int, int]], line: dict[str, Any]) -> str:
    detail = line.get("progressDetail") or {}
    layer = str(line.get("id", ""))
    if layer and line.get("status") == "Downloading" and detail.get("total"):
        layers[layer] = (int(detail.get("current", 0)), int(detail["total"]))
    elif layer in layers and line.get("status") in ("Download complete", "Extracting", "Pull complete"):
        layers[layer] = (layers[layer][1], layers[layer][1])
    total = sum(size for _, size in layers.values())
    if not total:
        return f"pulling {image_ref}: {line.get('status', '')}"[:200]
    done = sum(current for current, _ in layers.values())
    return f"pulling {image_ref}: {100 * done // total} % of {total / 1e6:.0f} MB"
