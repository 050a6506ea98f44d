"""What signals put into the inbox, and how a payload typed by hand becomes a message. Forgiving: nothing raises."""

from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from models import messages as m
from models.lifecycle import Command

TEXT_LIMIT = 300
"""Characters kept of any text that came in by a signal."""

_SystemMessage = type[m.SpecChange] | type[m.ContainerEvent] | type[m.HostEvent] | type[m.NodePresence]

_COMMANDS = frozenset(command.value for command in Command)

_SYSTEM_SIGNALS: dict[str, _SystemMessage] = {
    "change_spec": m.SpecChange,
    "container_event": m.ContainerEvent,
    "host_event": m.HostEvent,
    "node_presence": m.NodePresence,
}


class InboxItem(m.Message):
    """One signal as it came in. `args` are JSON values; `undecodable` says how many payloads were none."""

    name: str
    args: list[Any] = Field(default_factory=list)
    undecodable: int = 0
    at: datetime


class OddSignal(m.Message):
    """A signal that could not be understood, for the timeline."""

    name: str
    message: str


Parsed = m.CommandSignal | m.SpecChange | m.ContainerEvent | m.HostEvent | m.NodePresence | OddSignal


def parse(item: InboxItem) -> tuple[Parsed, str | None]:
    """The message an inbox item stands for, and a remark for the timeline where the payload was odd.

    A command is carried out whatever came with it: its meaning is in its name (design decision 4). A message from the
    system without a sound payload means nothing, and becomes an `OddSignal`.
    """
    if item.name in _COMMANDS:
        return _parse_command(item)
    kind = _SYSTEM_SIGNALS.get(item.name)
    if kind is None:
        known = ", ".join([*Command, *_SYSTEM_SIGNALS])
        return OddSignal(name=item.name[:TEXT_LIMIT], message=f"unknown signal; known are {known}"), None
    if len(item.args) != 1 or item.undecodable:
        return OddSignal(name=item.name, message="takes exactly one JSON object"), None
    try:
        return kind.model_validate(item.args[0]), None
    except ValidationError as error:
        return OddSignal(name=item.name, message=_summary(error)), None


def _parse_command(item: InboxItem) -> tuple[Parsed, str | None]:
    values = [value for value in item.args if value is not None]
    if not values and not item.undecodable:
        return m.CommandSignal(), None
    if len(values) == 1 and not item.undecodable and isinstance(values[0], dict):
        try:
            signal = m.CommandSignal.model_validate(values[0])
        except ValidationError as error:
            return m.CommandSignal(), f"payload ignored: {_summary(error)}"
        unknown = sorted(str(key)[:40] for key in values[0] if key not in m.CommandSignal.model_fields)
        remark = f"unknown fields ignored: {', '.join(unknown[:5])}" if unknown else None
        return _shortened(signal), remark
    return (
        m.CommandSignal(),
        "payload ignored: expected nothing, or one JSON object with `reason` and `actor`",
    )


def _shortened(signal: m.CommandSignal) -> m.CommandSignal:
    def cut(text: str | None) -> str | None:
        return None if text is None else text[:TEXT_LIMIT]

    return signal.model_copy(
        update={
            "reason": cut(signal.reason),
            "actor": cut(signal.actor),
            "request_id": cut(signal.request_id),
        }
    )


def _summary(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"]) or "payload"
    return f"{place}: {first['msg']}"[:TEXT_LIMIT]
