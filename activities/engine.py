"""The Docker engine: clients with deadlines, and one place that says what its errors mean."""

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import docker
import requests
import urllib3
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env
from temporalio.exceptions import ApplicationError

from activities.failures import failure
from models.errors import ErrorCode

ANSWER_SECONDS = 10
"""Deadline of calls that only look something up; a busy engine answers these in milliseconds."""
WORK_SECONDS = 50
"""Deadline of calls that make, start, stop or remove something; below the activities' own of 60 s."""

Inspection = dict[str, Any]

_UNREACHABLE = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError)
_NO_SANDBOX = re.compile(
    r"no command specified|exec format error|executable file not found|"
    r"exec: .*(no such file|permission denied|not found)|stat .*no such file",
    re.IGNORECASE,
)
_WRONG_PLATFORM = re.compile(
    r"no matching manifest|does not match the (specified|detected) (host )?platform|"
    r"cannot be used on this platform|image operating system",
    re.IGNORECASE,
)
_RUNTIME_NOISE = re.compile(
    r"(failed to create (task for container|shim( task)?): |OCI runtime (start|create) failed: |"
    r"runc (run|create) failed: |unable to start container process: |"
    r"container_linux\.go:\d+: starting container process caused: )"
)


class Engine:
    """The engine's clients, made when it first answers; one object serves every thread.

    Args:
        docker_host: address such as `unix:///run/docker.sock`; None for Docker's own variables and default.
        answer_seconds, work_seconds: deadlines of looking up and of making, seconds.
    """

    def __init__(
        self,
        docker_host: str | None = None,
        answer_seconds: float = ANSWER_SECONDS,
        work_seconds: float = WORK_SECONDS,
    ) -> None:
        self._docker_host = docker_host
        self._seconds = {"look": answer_seconds, "work": work_seconds}
        self._clients: dict[str, docker.APIClient] = {}
        self._lock = threading.Lock()
        self._architecture = ""

    @property
    def look(self) -> docker.APIClient:
        """For calls that only look something up. Raises what `reason` understands."""
        return self._client("look")

    @property
    def work(self) -> docker.APIClient:
        """For calls that change something, and for streams."""
        return self._client("work")

    def inspect(self, container: str) -> Inspection | None:
        """The container by name or id, or None where there is none."""
        try:
            found: Inspection = self.look.inspect_container(container)
            return found
        except NotFound:
            return None

    def architecture(self) -> str:
        """The engine's architecture in Docker's spelling, such as `amd64`. Raises `DOCKER_ERRORS`."""
        if not self._architecture:
            self._architecture = str(self.look.version()["Arch"])
        return self._architecture

    def version(self) -> str:
        """The engine's version; asks it. Raises `DOCKER_ERRORS`."""
        return str(self.look.version()["Version"])

    def answers(self) -> bool:
        """Whether the engine answers at all, whatever hangs in it."""
        try:
            self.version()
        except DOCKER_ERRORS:
            return False
        return True

    def client_with_deadline(self, seconds: float) -> docker.APIClient:
        """A new client, for the caller to close, all of whose calls end after `seconds`."""
        arguments: dict[str, Any] = dict(kwargs_from_env())
        if self._docker_host:
            arguments = {"base_url": self._docker_host}
        return docker.APIClient(version="auto", timeout=seconds, num_pools=4, **arguments)  # type: ignore[arg-type]  # the stub wants an int; requests takes a float

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def _client(self, kind: str) -> docker.APIClient:
        client = self._clients.get(kind)
        if client is not None:
            return client
        # The first call asks the engine's version and may take its whole deadline: never while holding the
        # lock.
        made = self.client_with_deadline(self._seconds[kind])
        with self._lock:
            kept = self._clients.setdefault(kind, made)
        if kept is not made:
            made.close()
        return kept


class EventStream:
    """Docker's events as they happen; a context manager for the thread that reads it.

    Args:
        since: UNIX time, seconds, of the first event wanted; None for those to come.

    Raises:
        DOCKER_ERRORS: the engine does not answer.
    """

    def __init__(self, engine: Engine, filters: dict[str, str | list[str]], since: int | None = None) -> None:
        self._stream = engine.work.events(decode=True, filters=filters, since=since)

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        # The SDK's own close leaves the response, and with it the descriptor, to the garbage collector.
        self._stream._response.close()  # type: ignore[attr-defined]  # private, and not in the stubs

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Events until the stream is stopped or breaks."""
        return iter(self._stream)

    def stop(self) -> None:
        """End the stream, from any thread."""
        with contextlib.suppress(
            OSError, AttributeError
        ):  # it has ended by itself: there is no socket any more
            self._stream.close()


def reason(error: BaseException) -> tuple[ErrorCode, str]:
    """What an error of the Docker SDK means: a code and one readable line."""
    if isinstance(error, APIError):
        text = readable(error)
        if _WRONG_PLATFORM.search(text):
            return ErrorCode.IMAGE_MISMATCH, text
        if _NO_SANDBOX.search(text):
            return ErrorCode.IMAGE_MISMATCH, f"the image cannot be run as a sandbox: {text}"
        if "no such image" in text.lower():
            return ErrorCode.IMAGE_NOT_FOUND, text
        return ErrorCode.START_FAILED, text
    if timed_out(error):
        return (
            ErrorCode.DOCKER_UNAVAILABLE,
            "the Docker engine accepts connections but does not answer in time",
        )
    if isinstance(error, (*_UNREACHABLE, DockerException)):
        return ErrorCode.DOCKER_UNAVAILABLE, f"the Docker engine cannot be reached: {_cause(error)}"
    return ErrorCode.INTERNAL, f"{type(error).__name__} while talking to Docker"


def timed_out(error: BaseException) -> bool:
    """Whether an error of the Docker SDK is a deadline that passed."""
    if isinstance(error, requests.exceptions.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return True
    unanswered = isinstance(error, (*_UNREACHABLE, DockerException)) and not isinstance(error, APIError)
    return unanswered and "timed out" in str(error).lower()


def docker_failure(error: BaseException, phase: str, generation: int = 0) -> ApplicationError:
    """The activity failure an error of the Docker SDK stands for."""
    code, text = reason(error)
    return failure(code, text, phase=phase, generation=generation)


DOCKER_ERRORS = (DockerException, *_UNREACHABLE)
"""What a call into the Docker SDK may raise."""


def readable(error: APIError) -> str:
    """Docker's message as one line without the runtime's stack of prefixes."""
    one_line = " ".join(str(error.explanation or error).split())
    return _RUNTIME_NOISE.sub("", one_line)[:500]


def _cause(error: BaseException) -> str:
    text = str(error)
    for known in (
        "Connection refused",
        "No such file or directory",
        "Permission denied",
        "Connection aborted",
    ):
        if known in text:
            return known.lower()
    return " ".join(text.split())[:200]
