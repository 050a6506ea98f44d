"""What a token opens on the node listener (protocol sections 1.1 and 7)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Engine
from sqlmodel import Session

from api import database
from inventory import node_tokens, pairings
from models import tokens

AdminVerifier = Callable[[str], Awaitable[str | None]]
"""The operator's name behind an admin token, or None; raises `Unavailable` when that cannot be told now."""

_MAX_TOKEN_CHARS = 4096


@dataclass(frozen=True)
class Claims:
    """What a credential says of its bearer.

    Attributes:
        kind: `admin` for any device and role, `device` for one device, `scoped` for one paired node.
        key: names the credential among others, and is no secret.
        role: of a device token. device_id: whom it is bound to.
        token_id, environment_id, generation: of a managed node token.
        vnc_password: of the node's desktop, derived from that token; where the image asks for one.
    """

    kind: Literal["admin", "device", "scoped"]
    key: str
    role: Literal["node", "client"] | None = None
    device_id: str | None = None
    token_id: str | None = None
    environment_id: str | None = None
    generation: int | None = None
    vnc_password: str | None = field(default=None, repr=False)


class Credentials:
    """Finds out what a token opens."""

    def __init__(self, engine: Engine, verify_admin: AdminVerifier | None) -> None:
        self._engine = engine
        self._verify_admin = verify_admin

    async def resolve(self, token: str) -> Claims | None:
        """The claims of a live token, None for any other.

        Raises:
            Unavailable: the inventory does not answer.
        """
        claims = await self.resolve_node(token)
        if claims is not None or self._verify_admin is None or not _plausible(token):
            return claims
        name = await self._verify_admin(token)
        return None if name is None else Claims(kind="admin", key=f"admin:{name}")

    async def resolve_node(self, token: str) -> Claims | None:
        """As `resolve`, for managed and scoped tokens only: one indexed look-up, no key derivation.

        Raises:
            Unavailable: the inventory does not answer.
        """
        if not _plausible(token):
            return None
        digest = tokens.sha256_hex(token)
        if tokens.is_scoped(token):
            return await database.read(self._engine, lambda session: _scoped(session, digest))
        if tokens.parse(token) is None:
            return None
        password = tokens.vnc_password(token)
        return await database.read(self._engine, lambda session: _managed(session, digest, password))


def _plausible(token: str) -> bool:
    return 0 < len(token) <= _MAX_TOKEN_CHARS


def _scoped(session: Session, digest: str) -> Claims | None:
    node_id = pairings.scoped_node(session, digest)
    if node_id is None:
        return None
    return Claims(kind="scoped", key=f"pairing:{node_id}", role="node", device_id=node_id)


def _managed(session: Session, digest: str, vnc_password: str) -> Claims | None:
    row = node_tokens.live_token(session, digest, datetime.now(UTC))
    if row is None:
        return None
    return Claims(
        kind="device",
        key=row.token_id,
        role="node",
        device_id=row.device_id,
        token_id=row.token_id,
        environment_id=row.environment_id,
        generation=row.generation,
        vnc_password=vnc_password,
    )
