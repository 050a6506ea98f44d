"""The canary test can fail: a secret planted in any kind of place, in any spelling, is found there."""

import base64
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import docker
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy.engine import make_url

from activities.identity import identity_document
from models import tokens, vnc
from tests.canary import needles, places
from tests.canary.needles import Place, Secret
from tests.canary.story import open_files
from tests.e2e.stack import IMAGE
from tests.setup.postgres import temporary_postgres

TOKEN = tokens.mint()
KEY = Ed25519PrivateKey.generate()
SEED = KEY.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
PEM = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
DOCUMENT = identity_document(KEY)
LINK = "x7Jq0_-aQ" * 4
PASSWORD = tokens.vnc_password(TOKEN.text)
RING = base64.b64encode(bytes(range(32))).decode()

SECRETS = [
    needles.bearer_token("node-token", TOKEN.text),
    needles.private_key("private-key", DOCUMENT["privateKey"]),
    needles.secret("takeover-token", LINK),
    needles.vnc_password("vnc-password", TOKEN.text),
    needles.secret("codec-key", RING, bytes(range(32))),
]

PLANTED = {
    "node-token": TOKEN.text.encode(),
    "private-key": DOCUMENT["privateKey"].encode(),
    "takeover-token": LINK.encode(),
    "vnc-password": vnc.password_file(PASSWORD),
    "codec-key": bytes(range(32)),
}

SPELLINGS: dict[str, tuple[str, bytes]] = {
    "whole token": ("node-token", TOKEN.text.encode()),
    "its secret half": ("node-token", TOKEN.text.rsplit(".", 1)[1].encode()),
    "the bytes behind it": ("node-token", TOKEN.secret),
    "those in hex": ("node-token", TOKEN.secret.hex().encode()),
    "token as a subprotocol": ("node-token", tokens.encode_subprotocol(TOKEN.text).encode()),
    "token inside a payload in base64": ("node-token", base64.b64encode(f'{{"a":"{TOKEN.text}"}}'.encode())),
    "key as it is kept": ("private-key", json.dumps(DOCUMENT).encode()),
    "key in PEM": ("private-key", PEM.encode()),
    "key in PEM inside JSON": ("private-key", json.dumps(PEM).encode()),
    "seed": ("private-key", SEED),
    "seed in hex": ("private-key", SEED.hex().upper().encode()),
    "seed in base64": ("private-key", base64.b64encode(b"ab" + SEED + b"c")),
    "link": ("takeover-token", f"/desktop-takeover/s/{LINK}/vnc.html".encode()),
    "link in a link": ("takeover-token", quote(f"desktop-takeover/s/{LINK}/websockify", safe="").encode()),
    "password": ("vnc-password", PASSWORD.encode()),
    "password as kept": ("vnc-password", vnc.password_file(PASSWORD)),
    "password in a payload": ("vnc-password", base64.urlsafe_b64encode(f"#{PASSWORD}".encode())),
    "codec key": ("codec-key", RING.encode()),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_and_named(spelling: str) -> None:
    name, text = SPELLINGS[spelling]
    names = {one for one, _ in needles.found(SECRETS, [("there", b"before " + text + b" after")])}
    assert name in names, spelling
    others = {"node-token", "private-key", "takeover-token", "codec-key", "vnc-password"} - {name}
    assert not names & others


def test_other_secrets_of_the_same_form_are_not_taken_for_it() -> None:
    other = identity_document(Ed25519PrivateKey.generate())
    text = json.dumps(other) + tokens.mint().text + TOKEN.token_id + DOCUMENT["publicKey"]
    assert list(needles.found(SECRETS, [("there", text.encode())])) == []


def planted_in(where: Iterator[Place] | list[Place]) -> set[tuple[str, str]]:
    return set(needles.found(SECRETS, where))


@pytest.mark.parametrize("one", SECRETS, ids=lambda one: one.name)
def test_files_and_databases(one: Secret, tmp_path: Path) -> None:
    # Longer than a page of SQLite, so that its file holds it in pieces.
    text = b"x" * 5000 + PLANTED[one.name] + b"y" * 5000
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "api.log").write_bytes(text)
    assert (one.name, "file logs/api.log") in planted_in(places.files(tmp_path))
    database = tmp_path / "inventory.db"
    for number, value in enumerate((text, text.hex())):
        with closing(sqlite3.connect(database)) as connection:
            connection.execute(f"CREATE TABLE t{number} (id integer, content)")
            connection.execute(f"INSERT INTO t{number} VALUES (1, ?)", (value,))  # noqa: S608  # a number
            connection.commit()
        assert (one.name, f"table inventory.db/t{number}") in planted_in(places.sqlite(database))


@pytest.mark.postgres
def test_postgresql() -> None:
    with temporary_postgres() as url:
        with psycopg.connect(
            host=str(make_url(url).query["host"]), dbname=make_url(url).database, user=make_url(url).username
        ) as connection:
            connection.execute("CREATE TABLE kept (plain text, raw bytea, object json)")
            for planted in PLANTED.values():
                connection.execute("INSERT INTO kept (raw) VALUES (%s)", (planted,))
        assert {name for name, _ in planted_in(places.postgresql(url))} == {one.name for one in SECRETS}


@contextmanager
def child(arguments: list[str], environment: dict[str, str]) -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
    finally:
        process.communicate()


@pytest.mark.parametrize("place", ["arguments", "environment"])
def test_processes(place: str) -> None:
    given = [TOKEN.text] if place == "arguments" else []
    environment = {"SECRET": TOKEN.text} if place == "environment" else {}
    with child(given, environment):
        # From above: children of children are looked at too.
        found = planted_in(places.processes({"us": os.getpid()}))
    assert {where.split()[0] for name, where in found if name == "node-token"} == {place}


@pytest.mark.docker
@pytest.mark.parametrize("place", ["environment", "command", "labels", "mounts", "log"])
def test_containers(place: str, tmp_path: Path) -> None:
    text = TOKEN.text
    (tmp_path / text).mkdir()
    planted: dict[str, dict[str, Any]] = {
        "environment": {"environment": {"TOKEN": text}},
        "command": {"command": ["sh", "-c", "sleep 0", text]},
        "labels": {"labels": {"token": text}},
        "mounts": {"volumes": {str(tmp_path / text): {"bind": "/mnt", "mode": "ro"}}},
        "log": {"command": ["cat", "/token"]},
    }
    (tmp_path / "token").write_text(text)
    options: dict[str, Any] = {"entrypoint": [], "command": ["true"], "network_mode": "none"} | planted[place]
    if place == "log":
        (tmp_path / "token").chmod(0o644)
        options["volumes"] = {str(tmp_path / "token"): {"bind": "/token", "mode": "ro"}}
    with closing(docker.from_env()) as engine:
        container = engine.containers.create(IMAGE, **options)
        try:
            container.start()
            container.wait(timeout=60)
            container.reload()
            found = planted_in(places.container(container.attrs, container.logs()))
        finally:
            container.remove(force=True)
    wanted = "docker logs" if place == "log" else "docker inspect"
    assert [where.rsplit(" ", 1)[0] for name, where in found if name == "node-token"] == [wanted]


@pytest.mark.parametrize("one", SECRETS, ids=lambda one: one.name)
def test_histories_and_answers(one: Secret) -> None:
    form = max(one.forms, key=len)
    data = base64.b64encode(b'{"x": "' + form + b'"}').decode()
    history = json.dumps({"events": [{"input": {"payloads": [{"data": data}]}}]})
    assert (one.name, "payloads of the history") in planted_in(places.payloads(history))
    assert planted_in([("answer", b'{"error": "' + form + b'"}')]) >= {(one.name, "answer")}


def test_modes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "secrets").mkdir(0o700)
    kept = tmp_path / "secrets" / "gateway-token"
    kept.touch(0o600)
    assert open_files(tmp_path) == []
    for mode in (0o640, 0o604, 0o660):
        kept.chmod(mode)
        assert len(open_files(tmp_path)) == 1
    kept.chmod(0o600)
    kept.parent.chmod(0o711)
    assert len(open_files(tmp_path)) == 1
