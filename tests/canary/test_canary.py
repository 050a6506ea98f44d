"""No secret lies about: one environment's life on the real stack, and then a search of everything it left.

Once as `up` comes, and once with encrypted payloads, PostgreSQL and the most talkative log.
"""

import json
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import keyring
from tests.canary import needles, places
from tests.canary.story import LABEL, Story, open_files
from tests.e2e.stack import running_stack
from tests.setup.postgres import temporary_postgres

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.docker,
    pytest.mark.postgres,
    pytest.mark.xdist_group("canary"),
    pytest.mark.timeout(400),
]

PLAIN, ENCRYPTED = "SQLite", "PostgreSQL, encrypted payloads, DEBUG"


@pytest.fixture(scope="module", params=[PLAIN, ENCRYPTED])
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The story, told; the stack still runs."""
    state_dir = tmp_path_factory.mktemp("canary")
    if request.param == PLAIN:
        with running_stack(state_dir) as stack:
            yield _told(Story(stack))
        return
    ring = state_dir / "codec-keys.json"
    keyring.add_key(ring, "canary")
    with (
        temporary_postgres() as url,
        running_stack(
            state_dir,
            DESKTOP_DATABASE_URL=url,
            DESKTOP_CODEC_KEYS_FILE=str(ring),
            DESKTOP_LOG_LEVEL="DEBUG",
        ) as stack,
    ):
        story = Story(stack)
        for name, text in json.loads(ring.read_text())["keys"].items():
            story.keep(needles.secret(f"codec-key {name}", text, b64decode(text)))
        yield _told(story)


def _told(story: Story) -> Story:
    story.tell()
    return story


def test_every_secret_was_met(story: Story) -> None:
    kinds = {one.name.split()[0] for one in story.secrets}
    wanted = {"admin-token", "node-token", "private-key", "vnc-password", "takeover-token", "pairing-token"}
    assert wanted | {"typed-text", "codec-capability"} <= kinds
    generations = [one for one in story.secrets if one.name.startswith("node-token")]
    assert len({one.forms for one in generations}) == 3, "each generation has its own"
    keys = [one.forms for one in story.secrets if one.name.startswith("private-key")]
    assert keys[0] == keys[1] != keys[2], "the identity was rotated by the reset"


def test_no_secret_lies_about(story: Story) -> None:
    looked = list(story.places())
    print(f"{len(story.secrets)} secrets, {len(looked)} places, {sum(len(text) for _, text in looked)} bytes")
    kinds = {where.split()[0] for where, _ in looked}
    assert {"file", "table", "docker", "arguments", "environment", "answer", "history", "query"} <= kinds
    found = set(needles.found(story.secrets, looked))
    lying = {(name, where) for name, where in found if not _belongs(name, where, story)}
    assert not lying, sorted(lying)
    # The searcher sees: each of these has to be found where it belongs.
    last = max(one.name for one in story.secrets if one.name.startswith("node-token"))
    own = f"file desktop-environments/{story.environment_id}"
    assert {
        ("admin-token configured", "file admin-token"),
        (last, f"{own}/secrets/gateway-token"),
        (last.replace("node-token", "vnc-password"), f"{own}/secrets/vnc-password"),
        (last.replace("node-token", "private-key"), f"{own}/identity/desktop-node/device-identity.json"),
    } <= found
    assert any(name == "admin-token configured" and "-m api" in where for name, where in found)


def test_files_are_the_owners_alone(story: Story) -> None:
    assert open_files(story.stack.state_dir) == []


def test_encrypted_payloads_leave_nothing_readable(story: Story) -> None:
    """What no secret is either, and tells who did what: labels, reasons."""
    label = needles.secret("label", LABEL)
    database = story.stack.state_dir / "temporal.db"
    tables = [place for place in places.sqlite(database) if "history_node" in place[0]]
    assert tables
    encrypted = "DESKTOP_CODEC_KEYS_FILE" in story.stack.more
    assert bool(list(needles.found([label], tables))) != encrypted


def _belongs(name: str, where: str, story: Story) -> bool:
    """Whether a secret is where it has to be (docs/security.md says why)."""
    kind = name.split(maxsplit=1)[0]
    own = f"file desktop-environments/{story.environment_id}"
    allowed = {
        "admin-token": "file admin-token",
        "node-token": f"{own}/secrets/gateway-token",
        "vnc-password": f"{own}/secrets/vnc-password",
        "private-key": f"{own}/identity/desktop-node/device-identity.json",
        "codec-key": "file codec-keys.json",
    }
    if name == "admin-token configured" and where.startswith("environment of the stack:"):
        return where.endswith("-P -m api")
    return allowed.get(kind) == where


def test_the_state_directory_has_nothing_but_what_is_named(story: Story) -> None:
    """A file that nobody thought of is a place that nobody thought of."""
    known = {
        *("admin-token", "endpoints.json", "up.lock", "logs", "runtime-state", "desktop-environments"),
        *("temporal.db", "temporal.db-wal", "temporal.db-shm"),
        *("inventory.db", "inventory.db-wal", "inventory.db-shm", "codec-keys.json"),
    }
    assert {path.name for path in Path(story.stack.state_dir).iterdir()} <= known
