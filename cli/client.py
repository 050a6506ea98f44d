"""The admin API as the commands see it: JSON in, JSON out, every refusal a `CliError`."""

import ipaddress
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from cli import state
from cli.exits import CliError, ExitCode, of_http_status

Json = dict[str, Any]

_PAGE = 200
_SLACK = 10.0
"""Seconds an answer may take beyond what the request itself asks to wait."""


class Api:
    """A client of the admin API.

    Args:
        url: origin of the admin listener. token: admin token.
        origin: where the token is from, for messages.
    """

    def __init__(self, url: str, token: str, origin: str = "DESKTOP_ADMIN_TOKEN") -> None:
        self.url = url.rstrip("/")
        self._origin = origin
        # trust_env: neither a proxy nor .netrc may get between the operator's token and this address.
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", "User-Agent": "desktopctl"},
            trust_env=False,
        )

    def close(self) -> None:
        """Let go of its connections."""
        self._client.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        about: str = "",
        params: Json | None = None,
        body: Json | None = None,
        wait: float = 0.0,
    ) -> Json:
        """One request.

        Args:
            about: what the request is about, put before a refusal's text.
            wait: seconds the API was asked to wait before it answers.

        Raises:
            CliError: no answer, a refusal, or an answer that is not this API's.
        """
        try:
            response = self._client.request(method, path, params=params, json=body, timeout=wait + _SLACK)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise CliError(
                f"no API at {self.url}: start it with `desktopctl up`, or set DESKTOP_API_URL",
                ExitCode.UNAVAILABLE,
            ) from None
        except httpx.TimeoutException:
            raise CliError(
                f"{_before(about)}the API at {self.url} did not answer within {wait + _SLACK:.0f} s: "
                "see its log, or try again",
                ExitCode.UNAVAILABLE,
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CliError(
                f"{_before(about)}the API at {self.url} went away while answering ({type(error).__name__}): "
                "try again",
                ExitCode.UNAVAILABLE,
            ) from None
        return self._content(response, about)

    def _content(self, response: httpx.Response, about: str) -> Json:
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise CliError(
                f"{self.url} answers, but not as this API does (HTTP {response.status_code}): "
                "is DESKTOP_API_URL right?",
                ExitCode.UNAVAILABLE,
            )
        if response.is_success:
            return answer
        message = str(answer.get("message") or answer.get("detail") or f"HTTP {response.status_code}")
        if response.status_code == httpx.codes.UNAUTHORIZED:
            message = f"{message} (token from {self._origin}): set DESKTOP_ADMIN_TOKEN to a live one"
        code = answer.get("error")
        raise CliError(
            _before(about) + message,
            of_http_status(response.status_code),
            code if isinstance(code, str) else None,
        )

    def environment(self, environment_id: str) -> Json:
        """Detail of one environment."""
        answer = self.call("GET", environment_path(environment_id), about=_named(environment_id))
        return _member(answer, "environment")

    def environments(self, pages: int | None = None, limit: int = _PAGE, **filters: str | None) -> list[Json]:
        """Environments, newest change first.

        Args:
            pages: how many pages at most; None for all of them. limit: environments per page.
            filters: `label`, `status`, `host_id`.
        """
        return [item for page in self.environment_pages(pages, limit, **filters) for item in page[0]]

    def environment_pages(
        self, pages: int | None, limit: int = _PAGE, **filters: str | None
    ) -> Iterator[tuple[list[Json], bool]]:
        """Pages of environments, each with whether more follow."""
        params: Json = {name: value for name, value in filters.items() if value} | {"limit": limit}
        while pages is None or pages > 0:
            answer = self.call("GET", "/desktop-environments", params=params)
            cursor = answer.get("next_cursor")
            yield _members(answer, "environments"), bool(cursor)
            if not cursor:
                return
            params["cursor"] = cursor
            pages = None if pages is None else pages - 1

    def command(self, environment_id: str, name: str, wait: float = 0.0, body: Json | None = None) -> Json:
        """Send `start`, `stop` or `reset`; returns the environment.

        Args:
            wait: seconds to wait for the outcome; 0 answers at once.
        """
        answer = self.call(
            "POST",
            f"{environment_path(environment_id)}/{name}",
            about=_named(environment_id),
            params=_waiting(wait),
            body=body,
            wait=wait,
        )
        return _member(answer, "environment")

    def delete(self, environment_id: str, wait: float = 0.0) -> Json:
        """Delete an environment; `deleted` in the answer says whether it is gone already."""
        return self.call(
            "DELETE",
            environment_path(environment_id),
            about=_named(environment_id),
            params=_waiting(wait),
            wait=wait,
        )

    def hosts(self) -> list[Json]:
        """Runtime hosts."""
        return _members(self.call("GET", "/desktop-environment-hosts"), "hosts")

    def nodes(self) -> list[Json]:
        """Node peers."""
        return _members(self.call("GET", "/nodes"), "nodes")

    def logs(self, environment_id: str, refresh: bool) -> list[str]:
        """The log tail, oldest line first; `refresh` reads the container now."""
        answer = self.call(
            "GET",
            f"{environment_path(environment_id)}/logs",
            about=_named(environment_id),
            params={"refresh": "true"} if refresh else None,
            wait=20.0 if refresh else 0.0,
        )
        return [str(line) for line in answer.get("logs", [])]

    def timeline(self, environment_id: str, after: str | int | None = None) -> list[Json]:
        """Every line, oldest first; only those after the one whose `id` is given."""
        entries: list[Json] = []
        while True:
            answer = self.call(
                "GET",
                f"{environment_path(environment_id)}/timeline",
                about=_named(environment_id),
                params={"after": after} if after is not None else None,
            )
            entries += _members(answer, "entries")
            following = answer.get("next_after")
            if following is None or following == after:
                return entries
            after = following

    def dispatch(self, node_id: str, op: str, args: Json, timeout: float = 30.0) -> Json:
        """One desktop capability call on a node (protocol section 6).

        Args:
            op: `screenshot`, `mouse`, `keyboard`, … args: as protocol section 6.2 says.
            timeout: seconds the gateway gives the queue, and again the node.

        Raises:
            CliError: refused, or the node could not do it.
        """
        capability = f"tyrum.desktop.{op.replace('_', '-')}"
        answer = self.call(
            "POST",
            f"/nodes/{quote(node_id, safe='')}/dispatch",
            about=f"node {node_id}",
            body={"capability": capability, "args": args},
            wait=2 * timeout,
        )
        error = answer.get("error")
        if isinstance(error, dict):
            code, message = error.get("code"), error.get("message")
            raise CliError(f"node {node_id}: {capability}: {code}: {message}", ExitCode.FAILED, str(code))
        return answer


def environment_path(environment_id: str) -> str:
    """Path of an environment's routes."""
    return f"/desktop-environments/{quote(environment_id, safe='')}"


def connect(state_dir: Path, api_url: str | None) -> Api:
    """The client for the stack the operator means.

    Args:
        api_url: named by the operator; None for the one this state directory's `up` listens on.

    Raises:
        CliError: the address is none, or there is no token for it.
    """
    endpoints = state.read_endpoints(state_dir)
    local = endpoints.api_url if endpoints else "http://127.0.0.1:8787"
    url = (api_url or local).rstrip("/")
    parts = _checked(url)
    token = os.environ.get("DESKTOP_ADMIN_TOKEN", "").strip()
    source = "DESKTOP_ADMIN_TOKEN"
    # The file's token is for this machine's stack: it is not sent to whatever host a URL names.
    if not token and (url == local or _is_loopback(parts.hostname or "")):
        source = str(state_dir / state.ADMIN_TOKEN)
        token = state.read_text(state_dir / state.ADMIN_TOKEN) or ""
    if not token and endpoints is None and api_url is None:
        raise CliError(
            f"`desktopctl up` has not run in {state_dir}: start it, or set DESKTOP_API_URL and "
            "DESKTOP_ADMIN_TOKEN",
            ExitCode.UNAVAILABLE,
        )
    if not token:
        raise CliError(
            f"no admin token for {url}: set DESKTOP_ADMIN_TOKEN, or run as the user of `desktopctl up` "
            f"(it keeps one in {state_dir / state.ADMIN_TOKEN})",
            ExitCode.UNAUTHORIZED,
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise CliError(f"{source} does not hold a token", ExitCode.UNAUTHORIZED)
    return Api(url, token, source)


def _waiting(seconds: float) -> Json | None:
    """The `wait` parameter, which is whole seconds."""
    return {"wait": math.ceil(seconds)} if seconds > 0 else None


def _checked(url: str) -> Any:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        sound = False
    if not sound:
        raise CliError(
            f"{url!r} is not an address of an API: write http://host:port (DESKTOP_API_URL, --api-url)",
            ExitCode.USAGE,
        )
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _named(environment_id: str) -> str:
    return f"environment {environment_id}"


def _before(about: str) -> str:
    return f"{about}: " if about else ""


def _member(answer: Json, name: str) -> Json:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise CliError(f"the API's answer has no `{name}`: is it another version?", ExitCode.UNAVAILABLE)
    return value


def _members(answer: Json, name: str) -> list[Json]:
    values = answer.get(name)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise CliError(f"the API's answer has no `{name}`: is it another version?", ExitCode.UNAVAILABLE)
    return values
