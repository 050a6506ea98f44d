"""Operators' bearer tokens: salt and scrypt hash at rest (protocol section 7.1)."""

import asyncio
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from sqlalchemy import Engine, func, update
from sqlmodel import Session, col, select

from inventory.engine import affected, reading, storable
from models import tokens
from models.tables import AdminTokenRow

CONFIGURED_OPERATOR = "admin"
"""Name of whoever presents `DESKTOP_ADMIN_TOKEN`, so of no other token."""
NAME_CHARS = 120
FRESH_SECONDS = 0.5
"""How long a token is believed without asking the database: revocation has to hold within 1 s."""
_CACHED_TOKENS = 256
_LOCK_KEY = 0x746F6B656E
_HASHES_AT_ONCE = 2
"""Bound on scrypt computations, 16 MiB and tens of milliseconds each: guesses cannot take every core."""


class AdminPrincipal(NamedTuple):
    """Who presented a token."""

    token_id: str
    name: str


class _Believed(NamedTuple):
    principal: AdminPrincipal
    token_hash: str
    asked_at: float


def create(
    session: Session, name: str, now: datetime, expires_at: datetime | None = None
) -> tuple[AdminTokenRow, tokens.Token]:
    """Make a token; its text is shown here and never again. Takes tens of milliseconds of CPU."""
    row, token = prepare(name, now, expires_at)
    session.add(row)
    session.flush()
    return row, token


def prepare(
    name: str, now: datetime, expires_at: datetime | None = None
) -> tuple[AdminTokenRow, tokens.Token]:
    """A token and the row that will let it in, not written yet. Takes tens of milliseconds of CPU."""
    token = tokens.mint()
    salt = tokens.new_salt()
    row = AdminTokenRow(
        token_id=token.token_id,
        name=storable(name, NAME_CHARS),
        salt=salt,
        token_hash=tokens.scrypt_hash(token.secret, salt),
        created_at=now,
        expires_at=expires_at,
    )
    return row, token


def get(session: Session, token_id: str) -> AdminTokenRow | None:
    """One token, live or not."""
    return session.get(AdminTokenRow, storable(token_id), populate_existing=True)


class NameTaken(Exception):
    """There is a live token of this name, or it is that of `DESKTOP_ADMIN_TOKEN`."""


def insert(session: Session, row: AdminTokenRow, now: datetime) -> None:
    """Write a prepared token, unless a live one has its name: names are actors in the audit.

    What is live depends on the time, so no index can see to it: whoever inserts waits for whoever is at it.

    Raises:
        NameTaken: nothing is written.
    """
    if session.get_bind().dialect.name == "postgresql":
        # SQLite has one writer at a time anyhow.
        session.execute(select(func.pg_advisory_xact_lock(_LOCK_KEY)))
    same = select(AdminTokenRow).where(
        col(AdminTokenRow.name) == row.name, col(AdminTokenRow.revoked_at).is_(None)
    )
    if row.name == CONFIGURED_OPERATOR or any(is_live(other, now) for other in session.exec(same)):
        raise NameTaken
    session.add(row)
    session.flush()


def is_live(row: AdminTokenRow, now: datetime) -> bool:
    """Whether a token opens something now."""
    return row.revoked_at is None and (row.expires_at is None or row.expires_at > now)


def list_all(session: Session) -> list[AdminTokenRow]:
    """Every token, revoked and expired ones too, oldest first."""
    return list(
        session.exec(select(AdminTokenRow).order_by(col(AdminTokenRow.created_at), AdminTokenRow.name))
    )


def revoke(session: Session, token_id: str, now: datetime) -> bool:
    """End a token; returns whether it was there and not revoked."""
    statement = (
        update(AdminTokenRow)
        .where(col(AdminTokenRow.token_id) == storable(token_id), col(AdminTokenRow.revoked_at).is_(None))
        .values(revoked_at=now)
    )
    return affected(session, statement) == 1


class AdminTokenVerifier:
    """Tells who presented a token; one per process, shared by threads.

    A token that was right once is known again by its SHA-256, so that scrypt runs once per token and process;
    every `FRESH_SECONDS` its row is read again, so that expiry and revocation hold.

    Args:
        engine: the inventory's.
        clock: the present time, for tests.
    """

    def __init__(self, engine: Engine, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._clock = clock
        self._believed: OrderedDict[bytes, _Believed] = OrderedDict()
        self._lock = threading.Lock()
        self._hashing = threading.BoundedSemaphore(_HASHES_AT_ONCE)

    async def verify(self, text: str) -> AdminPrincipal | None:
        """The principal of a live token, or None; the event loop waits for neither scrypt nor the database.

        Raises:
            SQLAlchemyError: the database is away.
        """
        token = tokens.parse(text)
        if token is None:
            return None
        believed = self._recall(_key(text))
        if believed is not None and time.monotonic() - believed.asked_at < FRESH_SECONDS:
            return believed.principal
        return await asyncio.to_thread(self._ask, token)

    def verify_sync(self, text: str) -> AdminPrincipal | None:
        """As `verify`, for threads."""
        token = tokens.parse(text)
        return None if token is None else self._ask(token)

    def _ask(self, token: tokens.Token) -> AdminPrincipal | None:
        asked_at = time.monotonic()
        key = _key(token.text)
        with reading(self._engine) as session:
            row = session.get(AdminTokenRow, token.token_id)
        now = self._clock()
        expired = row is not None and row.expires_at is not None and row.expires_at <= now
        if row is None or row.revoked_at is not None or expired:
            self._forget(key)
            return None
        believed = self._recall(key)
        if believed is None or believed.token_hash != row.token_hash:
            with self._hashing:
                if not tokens.scrypt_verify(token.secret, row.salt, row.token_hash):
                    return None
        principal = AdminPrincipal(row.token_id, row.name)
        self._remember(key, _Believed(principal, row.token_hash, asked_at))
        return principal

    def _recall(self, key: bytes) -> _Believed | None:
        with self._lock:
            return self._believed.get(key)

    def _remember(self, key: bytes, believed: _Believed) -> None:
        with self._lock:
            self._believed[key] = believed
            self._believed.move_to_end(key)
            while len(self._believed) > _CACHED_TOKENS:
                self._believed.popitem(last=False)

    def _forget(self, key: bytes) -> None:
        with self._lock:
            self._believed.pop(key, None)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
