"""What operators type to mean one environment: its id, the beginning of it, or its label."""

from collections.abc import Iterable

from cli.client import Api, Json
from cli.exits import CliError, ExitCode
from models.identifiers import is_environment_id

_SHOWN = 6


def environment_id(api: Api, text: str) -> str:
    """The id of the environment that `text` names.

    Raises:
        CliError: none does, or several do.
    """
    if is_environment_id(text):
        return text
    found = [e for e in api.environments() if _matches(e, text)]
    if not found:
        raise CliError(
            f"no environment has an id that begins with {text!r}, or that label: see `desktopctl list`",
            ExitCode.NOT_FOUND,
            "not_found",
        )
    if len(found) > 1:
        raise CliError(f"{text!r} means several environments: {_listed(found)}", ExitCode.USAGE, "ambiguous")
    return str(found[0]["environment_id"])


def host_id(hosts: Iterable[Json], text: str | None) -> str:
    """The id of the host that `text` names by its beginning or label; without `text`, of the only usable one.

    Raises:
        CliError: none does, or several do.
    """
    known = list(hosts)
    if text is None:
        usable = [host for host in known if host.get("healthy") and host.get("docker_available")]
        if len(usable) == 1:
            return str(usable[0]["host_id"])
        if not usable:
            raise CliError(
                "no runtime host is healthy: see `desktopctl hosts`, and the host worker's log",
                ExitCode.CONFLICT,
                "conflict",
            )
        names = ", ".join(str(host["host_id"]) for host in usable[:_SHOWN])
        raise CliError(f"several runtime hosts are healthy, name one with --host: {names}", ExitCode.USAGE)
    exact = [host for host in known if text in (host["host_id"], host.get("label"))]
    found = exact or [host for host in known if str(host["host_id"]).startswith(text)]
    if len(found) != 1:
        names = ", ".join(str(host["host_id"]) for host in (found or known)[:_SHOWN]) or "none is registered"
        problem = "means several hosts" if found else "is no runtime host"
        raise CliError(f"{text!r} {problem}: {names}", ExitCode.USAGE if found else ExitCode.NOT_FOUND)
    return str(found[0]["host_id"])


def _matches(environment: Json, text: str) -> bool:
    return bool(text) and (
        str(environment["environment_id"]).startswith(text.lower()) or environment.get("label") == text
    )


def _listed(environments: list[Json]) -> str:
    names = [f"{e['environment_id']} ({e.get('label') or 'no label'})" for e in environments[:_SHOWN]]
    more = len(environments) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
