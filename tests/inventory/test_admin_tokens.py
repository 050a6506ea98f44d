"""Operators' tokens: scrypt at rest, cheap to check again, revoked at once."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import Engine, text

from inventory import admin_tokens
from inventory.admin_tokens import AdminPrincipal, AdminTokenVerifier
from inventory.engine import reading, writing
from models import tokens
from models.tables import AdminTokenRow


def make(engine: Engine, now: datetime, **fields: datetime) -> tokens.Token:
    with writing(engine) as session:
        _, token = admin_tokens.create(session, "ann", now, **fields)
    return token


def count_scrypt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    real: Callable[[bytes, str, str], bool] = tokens.scrypt_verify

    def counted(secret: bytes, salt: str, expected: str) -> bool:
        calls.append(1)
        return real(secret, salt, expected)

    monkeypatch.setattr(tokens, "scrypt_verify", counted)
    return calls


async def test_token_is_known_and_hashed_once(
    engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make(engine, now)
    calls = count_scrypt(monkeypatch)
    verifier = AdminTokenVerifier(engine, lambda: now)
    for _ in range(20):
        assert await verifier.verify(token.text) == AdminPrincipal(token.token_id, "ann")
    assert verifier.verify_sync(token.text) == AdminPrincipal(token.token_id, "ann")
    assert len(calls) == 1


async def test_only_the_hash_is_kept(engine: Engine, now: datetime) -> None:
    token = make(engine, now)
    with engine.connect() as connection:
        (row,) = connection.execute(text("SELECT * FROM admin_tokens")).all()
    assert token.text.split(".")[3] not in repr(row)
    with reading(engine) as session:
        (listed,) = admin_tokens.list_all(session)
    assert tokens.scrypt_verify(token.secret, listed.salt, listed.token_hash)


async def test_other_texts_open_nothing(
    engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, stranger = make(engine, now), tokens.mint()
    calls = count_scrypt(monkeypatch)
    verifier = AdminTokenVerifier(engine, lambda: now)
    forged = ".".join([*token.text.split(".")[:3], stranger.text.split(".")[3]])
    assert await verifier.verify(token.text) is not None
    for text_ in ["", "x", "\x00", "ü\ud800", stranger.text, forged, token.text + "=", token.text.upper()]:
        assert await verifier.verify(text_) is None
    assert len(calls) == 2


async def test_revocation_and_expiry_hold_within_a_second(engine: Engine, now: datetime) -> None:
    present = [now]
    verifier = AdminTokenVerifier(engine, lambda: present[0])
    revoked, expiring = make(engine, now), make(engine, now, expires_at=now + timedelta(seconds=30))
    assert await verifier.verify(revoked.text) and await verifier.verify(expiring.text)
    with writing(engine) as session:
        assert admin_tokens.revoke(session, revoked.token_id, now)
        assert not admin_tokens.revoke(session, revoked.token_id, now)
    present[0] = now + timedelta(seconds=30)
    assert admin_tokens.FRESH_SECONDS < 1
    await asyncio.sleep(admin_tokens.FRESH_SECONDS)
    assert await verifier.verify(revoked.text) is None
    assert await verifier.verify(expiring.text) is None


async def test_the_event_loop_goes_on_during_scrypt(engine: Engine, now: datetime) -> None:
    token = make(engine, now)
    verifier = AdminTokenVerifier(engine, lambda: now)
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0)
            gaps.append(time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    assert await verifier.verify(token.text)
    ticking.cancel()
    print(f"longest stop of the loop during a first check: {max(gaps) * 1000:.1f} ms, {len(gaps)} turns")
    assert len(gaps) > 10


async def test_cache_is_bounded(engine: Engine, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_tokens, "_CACHED_TOKENS", 1)
    first, second = make(engine, now), make(engine, now)
    calls = count_scrypt(monkeypatch)
    verifier = AdminTokenVerifier(engine, lambda: now)
    for token in (first, second, first):
        assert await verifier.verify(token.text)
    assert len(calls) == 3


def test_of_many_who_want_a_name_at_once_one_gets_it(engine: Engine, now: datetime) -> None:
    rows = [admin_tokens.prepare("ben", now)[0] for _ in range(8)]
    together = Barrier(len(rows))

    def insert(row: AdminTokenRow) -> bool:
        together.wait(10)
        try:
            with writing(engine) as session:
                admin_tokens.insert(session, row, now)
        except admin_tokens.NameTaken:
            return False
        return True

    with ThreadPoolExecutor(len(rows)) as pool:
        assert sorted(pool.map(insert, rows)) == [False] * 7 + [True]


def test_a_name_is_free_again_once_its_token_has_ended(engine: Engine, now: datetime) -> None:
    for number in range(2):
        row, _ = admin_tokens.prepare("cat", now, now + timedelta(seconds=60))
        with writing(engine) as session:
            admin_tokens.insert(session, row, now + timedelta(seconds=61 * number))
    reserved, _ = admin_tokens.prepare(admin_tokens.CONFIGURED_OPERATOR, now)
    with pytest.raises(admin_tokens.NameTaken), writing(engine) as session:
        admin_tokens.insert(session, reserved, now)
