"""The timeline as people see it: what the workflow recorded, joined with what the audit adds.

The two are numbered apart, so a place in the timeline is a pair, written `<sequence>.<audit id>`. Whoever goes on
after such a place misses nothing and sees nothing twice, whenever the other half is written.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlmodel import Session, col, func, select

from inventory import audit, events
from models.messages import TimelineEntry
from models.tables import AuditRow, EnvironmentEventRow, EnvironmentRow

_PLACE = re.compile(r"(-1|[0-9]{1,10})(?:\.([0-9]{1,19}))?")


class Place(NamedTuple):
    """A place in a timeline: everything up to this sequence and up to this id of the audit has been read."""

    sequence: int = -1
    audit_id: int = 0

    def __str__(self) -> str:
        return f"{self.sequence}.{self.audit_id}"


START = Place()


class Item(NamedTuple):
    """One line and the place right after it."""

    place: Place
    line: TimelineEntry | AuditRow


class Mark(NamedTuple):
    """How far an environment's records go; another mark means that there is something to read."""

    sequence: int | None
    audit_id: int | None
    deleted: bool


def parse_place(text: str) -> Place | None:
    """The place that was written so, or a plain sequence; None for anything else."""
    found = _PLACE.fullmatch(text)
    if found is None:
        return None
    return Place(int(found[1]), min(int(found[2] or 0), audit.MAX_ID))


def join(entries: Sequence[TimelineEntry], rows: Sequence[AuditRow], after: Place, limit: int) -> list[Item]:
    """Both halves as one, by time, each half in its own order; at most `limit` lines."""
    items: list[Item] = []
    place, entry, row = after, 0, 0
    while len(items) < limit and (entry < len(entries) or row < len(rows)):
        first = row == len(rows) or (entry < len(entries) and entries[entry].at <= rows[row].at)
        line: TimelineEntry | AuditRow
        if first:
            line = entries[entry]
            place = place._replace(sequence=line.sequence)
            entry += 1
        else:
            line = rows[row]
            place = place._replace(audit_id=line.audit_id or 0)
            row += 1
        items.append(Item(place, line))
    return items


def page(session: Session, environment_id: str, after: Place, limit: int) -> list[Item]:
    """The lines recorded after a place; an empty list is the end."""
    entries = events.page(session, environment_id, after.sequence, limit)
    return join(entries, audit.of_environment(session, environment_id, after.audit_id, limit), after, limit)


def marks(session: Session, environment_ids: Iterable[str]) -> dict[str, Mark]:
    """How far the records of each of these environments go; a few index look-ups each."""
    sequence = (
        select(func.max(EnvironmentEventRow.sequence))
        .where(EnvironmentEventRow.environment_id == EnvironmentRow.environment_id)
        .scalar_subquery()
    )
    audited = (
        select(func.max(AuditRow.audit_id))
        .where(AuditRow.environment_id == EnvironmentRow.environment_id)
        .scalar_subquery()
    )
    statement = select(
        EnvironmentRow.environment_id, sequence, audited, col(EnvironmentRow.deleted_at).is_not(None)
    ).where(col(EnvironmentRow.environment_id).in_(list(environment_ids)))
    return {row[0]: Mark(*row[1:]) for row in session.exec(statement)}
