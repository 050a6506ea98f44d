"""The timelines of environments: appended by their workflows' records, kept after deletion."""

from collections.abc import Sequence

from sqlalchemy import func
from sqlmodel import Session, col, select

from inventory.engine import insert_into, storable
from models.messages import TimelineEntry
from models.tables import EnvironmentEventRow

MAX_PAGE = 1000
_MAX_SEQUENCE = 2**31 - 1


def append(
    session: Session, environment_id: str, entries: Sequence[TimelineEntry], *, newest: bool = False
) -> None:
    """Write the entries that are not there yet, told by their sequence; the environment has to exist.

    Args:
        newest: they come with the newest record. A workflow task that was cut off after its write is carried out again
            with all that came in meanwhile, so its entries are others under the same numbers: the later ones count.
            Where more is stored than this workflow ever wrote, it was reset by hand, and what is stored stays.
    """
    if not entries:
        return
    insert = insert_into(session, EnvironmentEventRow)
    key = ["environment_id", "sequence"]
    values = [_values(environment_id, entry) for entry in entries]
    if newest and last_sequence(session, environment_id) <= entries[-1].sequence:
        changes = {name: insert.excluded[name] for name in values[0] if name not in key}
        statement = insert.on_conflict_do_update(index_elements=key, set_=changes)
    else:
        statement = insert.on_conflict_do_nothing(index_elements=key)
    session.execute(statement, values)


def last_sequence(session: Session, environment_id: str) -> int:
    """The sequence of the newest entry; 0 where there is none."""
    newest = select(func.max(EnvironmentEventRow.sequence)).where(
        EnvironmentEventRow.environment_id == environment_id
    )
    return session.exec(newest).one() or 0


def page(session: Session, environment_id: str, after: int = -1, limit: int = 200) -> list[TimelineEntry]:
    """Entries in their order, of a deleted environment too; an empty list is the end.

    Args:
        after: the sequence of the last entry already read.
        limit: at most this many, 1 to `MAX_PAGE`.
    """
    statement = (
        select(EnvironmentEventRow)
        .where(
            EnvironmentEventRow.environment_id == storable(environment_id),
            col(EnvironmentEventRow.sequence) > max(-1, min(after, _MAX_SEQUENCE)),
        )
        .order_by(col(EnvironmentEventRow.sequence))
        .limit(max(1, min(limit, MAX_PAGE)))
    )
    return [TimelineEntry.model_validate(row.model_dump()) for row in session.exec(statement)]


def _values(environment_id: str, entry: TimelineEntry) -> dict[str, object]:
    text = {"actor": entry.actor, "reason": entry.reason, "message": entry.message}
    return {
        "environment_id": environment_id,
        "sequence": entry.sequence,
        "at": entry.at,
        "kind": storable(entry.kind),
        "name": storable(entry.name),
        "status": entry.status.value,
        "generation": entry.generation,
        "detail": entry.model_dump(mode="json")["detail"],
    } | {name: None if value is None else storable(value) for name, value in text.items()}
