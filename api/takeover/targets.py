"""What a takeover session opens right now, asked anew on every request (protocol section 12.23).

A session opens only while it lives, its environment runs, and the generation is the one it was made for; the
port is the one the host reported for that generation. A port that another process took over is never shown.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import urlsplit

from sqlmodel import Session, col, select

from inventory import takeover
from models.lifecycle import Status
from models.tables import EnvironmentRow, TakeoverSessionRow
from models.takeover import trusted_origin


@dataclass(frozen=True)
class Target:
    """The noVNC server behind a live session.

    Attributes:
        node_id: of the desktop, None where it has none. view_only: input is not to reach it.
        port: published on the host for the session's generation.
    """

    session_id: str
    environment_id: str
    generation: int
    node_id: str | None
    view_only: bool
    scheme: str
    host: str
    port: int

    def url(self, scheme: str, path: str, query: str) -> str:
        """Address of `path` at the noVNC server; `scheme`: `http` or `ws`, secure where the target is."""
        secure = "s" if self.scheme == "https" else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}{secure}://{host}:{self.port}{path}" + (f"?{query}" if query else "")


def find(session: Session, token_sha256: str, now: datetime) -> Target | None:
    """The target behind a token, None where the session does not open anything now."""
    found = takeover.find_live(session, token_sha256, now)
    if found is None:
        return None
    origin = urlsplit(trusted_origin(found.takeover_origin))
    return Target(
        session_id=found.session_id,
        environment_id=found.environment_id,
        generation=found.generation,
        node_id=found.node_id,
        view_only=found.view_only,
        scheme=origin.scheme,
        host=origin.hostname or "",
        port=found.novnc_port,
    )


def open_ports(session: Session, session_ids: Collection[str], now: datetime) -> dict[str, int]:
    """Of these sessions, those that still open something, with the port."""
    statement = (
        select(TakeoverSessionRow.session_id, EnvironmentRow.novnc_port)
        .join(EnvironmentRow, col(EnvironmentRow.environment_id) == TakeoverSessionRow.environment_id)
        .where(
            col(TakeoverSessionRow.session_id).in_(session_ids),
            col(TakeoverSessionRow.revoked_at).is_(None),
            col(TakeoverSessionRow.expires_at) > now,
            col(EnvironmentRow.generation) == TakeoverSessionRow.generation,
            col(EnvironmentRow.status) == Status.RUNNING.value,
            col(EnvironmentRow.deleted_at).is_(None),
        )
    )
    return {session_id: port for session_id, port in session.exec(statement) if port is not None}
