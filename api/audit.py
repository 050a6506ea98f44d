"""The record of every request that changes something, and of every one that was refused.

**No change without its row.** Whoever is about to change something calls `begin`, which writes the row first, or
`stage`, which writes it in the transaction of the change itself. When the row cannot be written, nothing is changed
and the answer is 503. What was begun and then went wrong gets a second row, `failed`. A route that calls neither is
recorded before its answer leaves, and the answer is withheld when that fails. A refusal stands whether or not it
could be recorded; where not, the log has it.
"""

import hashlib
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Engine
from sqlmodel import Session
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import database
from api.errors import code_of, response_for
from api.guard import is_public
from api.throttle import Throttle
from inventory import audit, takeover
from inventory.audit import ActorKind, Fact, Outcome
from models.codec_address import CODEC_PREFIX, hide_capability
from models.errors import ApiError, Unavailable
from models.identifiers import is_environment_id
from models.takeover import TAKEOVER_PREFIX

logger = logging.getLogger(__name__)

ACTIONS: Final[Mapping[str, str]] = {
    "create_environment": "environment.create",
    "patch_environment": "environment.change",
    "delete_environment": "environment.delete",
    "start_environment": "environment.start",
    "stop_environment": "environment.stop",
    "reset_environment": "environment.reset",
    "create_takeover_session": "takeover.open",
    "redirect_to_desktop": "takeover.redirect",
    "extend_takeover_session": "takeover.extend",
    "revoke_takeover_session": "takeover.revoke",
    "approve_pairing": "pairing.approve",
    "deny_pairing": "pairing.deny",
    "revoke_pairing": "pairing.revoke",
    "dispatch": "dispatch",
    "put_defaults": "defaults.change",
    "create_token": "token.create",
    "revoke_token": "token.revoke",
}
"""Names of what routes do, by operation id; another route that changes something goes by its own name."""

MUTATING: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_AUDITED_READS = frozenset({"redirect_to_desktop"})
_CODEC_HOLDER = "holder of the codec address"
_REFUSAL_SECONDS = 1.0
"""How long a refusal waits for its row; it does not depend on it."""


@dataclass
class Entry:
    """What is known of one request so far."""

    engine: Engine
    source: str | None
    action: str = ""
    actor: str = ""
    begun: bool = False
    known: bool = True
    failure: str | None = None
    environment_id: str | None = None
    generation: int | None = None
    target: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    scope: Scope = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """As the function of this name."""
        self.detail |= {name: value for name, value in facts.pop("detail", {}).items() if value is not None}
        for name, value in facts.items():
            if value is not None:
                setattr(self, name, value)

    def fact(self, outcome: Outcome, code: str | None = None) -> Fact:
        """The row."""
        _identify(self)
        return Fact(
            action=self.action,
            outcome=outcome,
            actor_kind=ActorKind.OPERATOR if self.actor and self.known else ActorKind.UNKNOWN,
            actor=self.actor or "unknown",
            source=self.source,
            code=code,
            environment_id=self.environment_id,
            generation=self.generation,
            target=self.target,
            detail=self.detail,
        )


_current: ContextVar[Entry | None] = ContextVar("audit_entry", default=None)


def note(**facts: Any) -> None:
    """Tell more of this request: `environment_id`, `generation`, `target`, `detail`, `failure`; None tells nothing."""
    entry = _current.get()
    if entry is not None:
        entry.note(**facts)


async def begin(**facts: Any) -> None:
    """Write the row of this request before what it is about is done; `facts` as for `note`.

    Raises:
        Unavailable: the row cannot be written; nothing must be done.
    """
    entry = _current.get()
    if entry is None:
        return
    entry.note(**facts)
    await write(entry.engine, entry.fact(Outcome.ACCEPTED))
    entry.begun = True


def stage(session: Session, **facts: Any) -> None:
    """As `begin`, as the last statement of the transaction that does it."""
    entry = _current.get()
    if entry is None:
        return
    entry.note(**facts)
    audit.append(session, entry.fact(Outcome.ACCEPTED), datetime.now(UTC))
    entry.begun = True


async def write(engine: Engine, fact: Fact, deadline: float = database.DEADLINE_SECONDS) -> int:
    """Record one fact in a transaction of its own.

    Raises:
        Unavailable: the inventory does not answer in time.
    """
    return await database.write(
        engine, lambda session: audit.append(session, fact, datetime.now(UTC)), deadline
    )


async def attempt(engine: Engine, fact: Fact) -> None:
    """As `write`, for what does not depend on it: where it cannot be written, the log has it."""
    try:
        await write(engine, fact, _REFUSAL_SECONDS)
    except Unavailable as error:
        logger.warning("not in the audit (%s): %s", error.message, fact)


class Audit:
    """The outermost layer of the admin application: sees who asked for what, and the answer."""

    def __init__(self, app: ASGIApp, engine: Engine) -> None:
        self._app = app
        self._engine = engine
        # Apart, so that being refused often hides nobody who was let in.
        self._refused, self._let_in = Throttle(), Throttle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "websocket" and scope["path"].startswith(TAKEOVER_PREFIX):
            await self._app(scope, receive, self._on_accept(scope, send))
        elif scope["type"] != "http" or (is_public(scope["path"]) and not _is_codec(scope)):
            await self._app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        entry = Entry(self._engine, _source(scope), scope=scope)
        withheld = False

        async def watched(message: Message) -> None:
            nonlocal withheld
            if message["type"] == "http.response.start":
                try:
                    await self._finish(entry, message["status"])
                except Unavailable as error:
                    withheld = True
                    told = Unavailable(f"it cannot be recorded in the audit: {error.message}")
                    await response_for(told)(scope, receive, send)
            if not withheld:
                await send(message)

        token = _current.set(entry)
        try:
            await self._app(scope, receive, watched)
        finally:
            _current.reset(token)

    async def _finish(self, entry: Entry, status: int) -> None:
        if status == 401:
            await self._stranger(entry)
            return
        _identify(entry)
        if _is_codec(entry.scope):
            await self._deciphered(entry, status)
            return
        route = getattr(entry.scope.get("route"), "name", "")
        if entry.scope["method"] not in MUTATING and route not in _AUDITED_READS:
            return
        if status >= 400:
            outcome = Outcome.FAILED if entry.begun or status == 500 else Outcome.REFUSED
            await attempt(entry.engine, entry.fact(outcome, code_of(status)))
        elif not entry.begun:
            await write(entry.engine, entry.fact(Outcome.ACCEPTED))
        if entry.failure is not None and status < 400:
            await attempt(entry.engine, entry.fact(Outcome.FAILED, entry.failure))

    async def _stranger(self, entry: Entry) -> None:
        turn = self._refused.take(entry.source or "")
        if turn is not None:
            target = _shown(entry.scope)
            entry.note(action="auth.refused", target=target, detail={"listener": "admin"} | turn.detail())
            await attempt(entry.engine, entry.fact(Outcome.REFUSED, "unauthorized"))

    async def _deciphered(self, entry: Entry, status: int) -> None:
        """Somebody reads histories, page by page: a row a minute. Reading does not depend on it."""
        if entry.scope["method"] != "POST":
            return
        # The path's one parameter is the capability.
        entry.target = None
        entry.action = f"codec.{entry.scope['path'].rpartition('/')[2]}"
        outcome = Outcome.REFUSED if status >= 400 else Outcome.ACCEPTED
        if not entry.actor and outcome is Outcome.ACCEPTED:
            entry.actor, entry.known = _CODEC_HOLDER, False
        throttle = self._let_in if outcome is Outcome.ACCEPTED else self._refused
        turn = throttle.take(f"{entry.action} {outcome} {entry.actor} {entry.source}")
        if turn is not None:
            entry.note(detail=turn.detail())
            code = code_of(status) if outcome is Outcome.REFUSED else None
            await attempt(entry.engine, entry.fact(outcome, code))

    def _on_accept(self, scope: Scope, send: Send) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "websocket.accept":
                await self._taken_over(scope)
            await send(message)

        return watched

    async def _taken_over(self, scope: Scope) -> None:
        """Somebody looks at a desktop through a session's link, which is the only credential he has shown."""
        digest = hashlib.sha256(
            scope["path"].removeprefix(TAKEOVER_PREFIX).split("/")[0].encode(errors="replace")
        ).hexdigest()
        try:
            live = await database.read(
                self._engine, lambda session: takeover.find_live(session, digest, datetime.now(UTC))
            )
        except ApiError as error:
            logger.warning("a takeover is not in the audit: %s", error.message)
            return
        turn = None if live is None else self._let_in.take(f"takeover {live.session_id} {_source(scope)}")
        if live is None or turn is None:
            return
        fact = Fact(
            action="takeover.connect",
            outcome=Outcome.ACCEPTED,
            actor_kind=ActorKind.UNKNOWN,
            actor="holder of the link",
            source=_source(scope),
            environment_id=live.environment_id,
            generation=live.generation,
            target=live.session_id,
            detail=turn.detail(),
        )
        await attempt(self._engine, fact)


def _identify(entry: Entry) -> None:
    """Who asks, and for what, as far as the layers below have found out."""
    scope = entry.scope
    operator = scope["state"].get("operator")
    entry.actor = entry.actor or getattr(operator, "name", "")
    if entry.action:
        return
    route = getattr(scope.get("route"), "name", None)
    entry.action = ACTIONS.get(route, route) if route else "request"
    parameters = scope.get("path_params", {})
    environment_id = parameters.get("environment_id", "")
    if is_environment_id(environment_id):
        entry.environment_id = entry.environment_id or environment_id
    if entry.target is None:
        others = [str(value) for name, value in parameters.items() if name != "environment_id"]
        entry.target = " ".join(others) or (None if route else _shown(scope))


def _is_codec(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.startswith(f"{CODEC_PREFIX}/") and path.endswith(("/encode", "/decode"))


def _shown(scope: Scope) -> str:
    return hide_capability(f"{scope['method']} {scope['path']}")


def _source(scope: Scope) -> str | None:
    client = scope.get("client")
    return client[0] if client else None
