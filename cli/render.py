"""How things look to people: colours of statuses, relative times, tables."""

import re
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from cli.client import Json

_STATUS_STYLES = {
    "running": "green",
    "stopped": "dim",
    "error": "bold red",
    "deleting": "magenta",
    "pending": "yellow",
    "starting": "yellow",
    "stopping": "yellow",
}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

_DETAIL = 16
"""Characters shown of one detail in the timeline; `--json` has all of it."""

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def clean(value: Any) -> str:
    """Text from elsewhere, without what a terminal would obey."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value))


def short(identifier: Any) -> str:
    """The beginning of an id, long enough to type."""
    return clean(identifier)[:8]


def status(value: Any) -> Text:
    """A status in its colour."""
    return Text(clean(value), style=_STATUS_STYLES.get(str(value), ""))


def ago(value: Any, now: datetime | None = None) -> str:
    """A time of the API as people say it; `-` for none."""
    at = parse_time(value)
    if at is None:
        return "-"
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if seconds < 0:
        return f"in {_span(-seconds)}"
    return f"{_span(seconds)} ago" if seconds >= 1 else "now"


def parse_time(value: Any) -> datetime | None:
    """A time of the API, or None."""
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def milliseconds(value: Any) -> str:
    """A duration of the API, which are milliseconds."""
    return f"{float(value):.0f} ms" if isinstance(value, int | float) else clean(value)


def yes(value: Any) -> Text:
    """A truth value."""
    return Text("yes", style="green") if value else Text("no", style="red")


def grid(*columns: str) -> Table:
    """A table without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in _LONG, overflow="fold")
    return table


_LONG = frozenset({"MESSAGE", "ERROR", "LABEL", "IMAGE", "OF WHICH"})


def environments(items: list[Json]) -> Table:
    """Environments, a line each."""
    table = grid("ID", "LABEL", "STATUS", "HOST", "IMAGE", "UPDATED", "ERROR")
    for item in items:
        error = item.get("last_error") or {}
        table.add_row(
            short(item.get("environment_id")),
            clean(item.get("label") or "-"),
            status(item.get("status")),
            _host(item.get("host_id")),
            clean(item.get("image_ref") or "-"),
            ago(item.get("updated_at")),
            Text(clean(error.get("code", "")), style="red"),
        )
    return table


def environment(item: Json) -> Table:
    """Everything about one environment."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows: list[tuple[str, Text | str]] = [
        ("environment", clean(item.get("environment_id"))),
        ("label", clean(item.get("label") or "-")),
        ("status", status(item.get("status"))),
        ("wanted", "running" if item.get("desired_running") else "stopped"),
        ("generation", clean(item.get("generation", "-"))),
        ("host", clean(item.get("host_id"))),
        ("image", clean(item.get("image_ref"))),
        ("profile", clean(item.get("security_profile", "-"))),
        ("limits", limits(item.get("limits"))),
        ("node", clean(item.get("node_id") or "-")),
        ("pairing", _pairing(item.get("pairing"))),
        ("takeover", "available" if item.get("takeover_available") else "not available"),
        ("created", ago(item.get("created_at"))),
        ("updated", ago(item.get("updated_at"))),
        ("last seen", ago(item.get("last_seen_at"))),
    ]
    if item.get("restarts"):
        rows.append(("restarts", clean(item["restarts"])))
    if item.get("next_retry_at"):
        rows.append(("next retry", ago(item["next_retry_at"])))
    phases = item.get("phases") or {}
    if phases:
        rows.append(("phases", ", ".join(f"{clean(n)} {milliseconds(ms)}" for n, ms in phases.items())))
    if item.get("source") == "inventory":
        note = "as last recorded: the workflow did not answer in time"
        rows.append(("source", Text(note, style="yellow")))
    error = item.get("last_error")
    if error:
        where = f" in {clean(error['phase'])}" if error.get("phase") else ""
        text = f"{clean(error.get('code'))}{where}, {ago(error.get('at'))}: {clean(error.get('message'))}"
        rows.append(("error", Text(text, style="red")))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _pairing(item: Any) -> Text | str:
    """Where the node's pairing stands, and whose decision that is."""
    if not isinstance(item, dict):
        return "-"
    standing = f"{clean(item.get('status'))} (pairing {clean(item.get('pairing_id'))})"
    if item.get("status") == "approved":
        return standing
    decided = f" by {clean(item['decided_by'])}" if item.get("decided_by") else ""
    reason = f": {clean(item['reason'])}" if item.get("reason") else ""
    return Text(f"{standing}{decided}{reason}", style="yellow")


def limits(item: Any) -> str:
    """Resource limits in words."""
    if not isinstance(item, dict):
        return "-"
    cpus, memory, pids, shm = (clean(item.get(name)) for name in ("cpus", "memory_mb", "pids", "shm_mb"))
    return f"{cpus} CPUs, {memory} MiB memory, {pids} processes, {shm} MiB shared memory"


def timeline(entries: list[Json]) -> Table:
    """Timeline entries, a line each."""
    table = grid("TIME", "STATUS", "WHAT", "GEN", "WHO", "MESSAGE")
    for entry in entries:
        table.add_row(*timeline_cells(entry))
    return table


def timeline_cells(entry: Json) -> tuple[str | Text, ...]:
    """The columns of one timeline entry."""
    at = parse_time(entry.get("at"))
    words = [entry.get("message"), entry.get("reason"), *_details(entry.get("detail"))]
    return (
        at.astimezone().strftime("%H:%M:%S.%f")[:-3] if at else "-",
        status(entry.get("status") or "-"),
        clean(f"{entry.get('kind')} {entry.get('name')}"),
        clean(_or_dash(entry.get("generation"))),
        clean(entry.get("actor") or "-"),
        "; ".join(clean(word) for word in words if word),
    )


def timeline_line(entry: Json) -> Text:
    """One timeline entry as a line."""
    at, shown, what, generation, who, message = timeline_cells(entry)
    return Text.assemble(f"{at}  ", shown, f"  {what}  gen {generation}  {who}  {message}")


def hosts(items: list[Json]) -> Table:
    """Runtime hosts, a line each."""
    table = grid("HOST", "LABEL", "HEALTHY", "DOCKER", "VERSION", "SEEN", "ERROR")
    for item in items:
        table.add_row(
            clean(item.get("host_id")),
            clean(item.get("label") or "-"),
            yes(item.get("healthy")),
            yes(item.get("docker_available")),
            clean(item.get("version") or "-"),
            ago(item.get("last_seen_at")),
            Text(clean(item.get("last_error") or ""), style="red"),
        )
    return table


def nodes(items: list[Json]) -> Table:
    """Node peers, a line each."""
    table = grid("NODE", "LABEL", "CONNECTED", "PAIRING", "CAPABILITIES", "SEEN")
    for item in items:
        capabilities = item.get("capabilities") or []
        table.add_row(
            clean(item.get("node_id"))[:16],
            clean(item.get("label") or "-"),
            yes(item.get("connected")),
            clean(item.get("paired_status") or "-"),
            str(len(capabilities)),
            ago(item.get("last_seen_at")),
        )
    return table


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def _host(identifier: Any) -> str:
    text = clean(identifier or "-")
    return text[:22]


def _details(detail: Any) -> list[str]:
    if not isinstance(detail, dict):
        return []
    return [f"{name}={_cut(value)}" for name, value in detail.items() if not isinstance(value, dict | list)]


def _cut(value: Any) -> str:
    text = clean(value)
    return text if len(text) <= _DETAIL else f"{text[: _DETAIL - 1]}…"


def _span(seconds: float) -> str:
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"
