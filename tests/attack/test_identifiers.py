"""Every identifier that reaches a file name, a container's name or label, a search attribute or a workflow id."""

import json
import logging
import re
from pathlib import Path, PurePosixPath
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from temporalio.exceptions import ApplicationError

from activities.hostfiles import environment_files
from api.bodies import ImageRef, Label, Reason
from inventory.engine import storable
from models import identifiers, tokens
from models.takeover import is_takeover_token
from tests.api.stack import ADMIN_TOKEN, Stack
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.junk import ODD_TEXTS, texts
from tests.attack.raw import exchange

pytestmark = pytest.mark.timeout(SECONDS)

UUID = "4f36b3dc-364a-4123-89b9-bd992405479e"
HOST = f"desktop-host-{UUID}"
NEAR = [
    *(
        UUID.upper(),
        f"{{{UUID}}}",
        f"urn:uuid:{UUID}",
        UUID.replace("-", ""),
        f"{UUID}\n",
        f" {UUID}",
        f"{UUID}\x00",
    ),
    *(
        f"../{UUID}",
        f"{UUID}/..",
        f"{UUID[:-1]}\u0665",
        HOST,
        f"{HOST}\n",
        f"{HOST}'",
        f"{HOST}/x",
        "." * 3,
        "a" * 101,
    ),
]
odd = texts | st.sampled_from(NEAR) | st.from_regex(r"[A-Za-z0-9_.\-]{0,110}", fullmatch=True)


@attack(EXAMPLES * 40)
@given(odd | st.uuids().map(str))
def test_what_counts_as_an_environment_id(text: str) -> None:
    if identifiers.is_environment_id(text):
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)


@attack(EXAMPLES * 40)
@given(odd)
def test_what_counts_as_a_host_id(text: str) -> None:
    if not identifiers.is_host_id(text):
        return
    # One part of a path, of a queue's name, of a quoted string in a visibility query, of a label.
    assert text.isascii() and text.isprintable() and not set(text) & set(" /\\'\"`$;:|&<>*?[]{}()=,%")
    assert len(text) <= 100 and text[0] not in ".-"
    assert PurePosixPath(identifiers.host_workflow_id(text)).parts == ("desktop-host", text)
    assert identifiers.host_task_queue(text).removeprefix("runtime-host:") == text


@attack(EXAMPLES * 40)
@given(odd)
def test_a_container_name_is_dockers_whatever_the_id(text: str) -> None:
    name = identifiers.container_name(text)
    assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+", name) and len(name) <= 63


@attack(EXAMPLES * 20)
@given(text=odd)
def test_no_id_leaves_the_state_directory(tmp_path: Path, text: str) -> None:
    if not identifiers.is_environment_id(text):
        with pytest.raises(ApplicationError) as refused:
            environment_files(tmp_path, text)
        assert refused.value.non_retryable
        return
    home = environment_files(tmp_path, text).home
    assert home == tmp_path / "desktop-environments" / text
    assert home.resolve().parent == (tmp_path / "desktop-environments").resolve()


@attack(EXAMPLES * 40)
@given(odd | st.from_regex(r"[a-zA-Z0-9./:@_\-\[\]+ ]{1,80}"))
def test_an_image_reference_is_no_option_and_no_path(text: str) -> None:
    try:
        taken = TypeAdapter(ImageRef).validate_python(text)
    except ValidationError:
        return
    assert taken == text and len(text) <= 255
    assert text.isascii() and re.fullmatch(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+\[\]-]*", text)
    assert not {"..", ".", ""} & set(text.split("@", maxsplit=1)[0].split("/"))


@attack(EXAMPLES * 40)
@given(texts)
def test_a_label_a_reason_and_a_tokens_name_are_one_printable_line(text: str) -> None:
    for kind in (Label, Reason):
        try:
            taken = TypeAdapter(kind).validate_python(text)
        except ValidationError:
            continue
        assert taken.isprintable() and taken.strip() and storable(taken) == taken
        json.dumps(taken).encode()


@attack(EXAMPLES * 40)
@given(odd | st.from_regex(r"tyrum-token\.v1\.[0-9a-fA-F-]{30,40}\.[A-Za-z0-9_\-=+/]{40,46}", fullmatch=True))
def test_tokens_have_one_spelling(text: str) -> None:
    token = tokens.parse(text)
    if token is not None:
        assert token.text == text and len(token.secret) == 32
        assert text == f"tyrum-token.v1.{token.token_id}.{tokens.b64url(token.secret)}"
        assert identifiers.is_environment_id(token.token_id)
    if is_takeover_token(text):
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", text)


PATHS = [
    ("GET", "/desktop-environments/{}"),
    ("PATCH", "/desktop-environments/{}"),
    ("DELETE", "/desktop-environments/{}"),
    ("POST", "/desktop-environments/{}/start"),
    ("GET", "/desktop-environments/{}/logs"),
    ("GET", "/desktop-environments/{}/events"),
    ("POST", "/desktop-environments/" + UUID + "/takeover-sessions/{}/revoke"),
    ("POST", "/desktop-environments/" + UUID + "/takeover-sessions/{}/extend"),
    ("GET", "/desktop-environment-hosts/{}"),
    ("GET", "/pairings/{}"),
    ("POST", "/pairings/{}/deny"),
    ("POST", "/nodes/{}/dispatch"),
    ("POST", "/tokens/{}/revoke"),
]
raw_ids = st.sampled_from(
    [text.encode("utf-8", "surrogatepass") for text in [*ODD_TEXTS, *NEAR]]
) | st.binary(max_size=60)


@pytest.mark.xdist_group("attack")
@attack(EXAMPLES * 20)
@given(path=st.sampled_from(PATHS), raw=raw_ids, encoded=st.booleans())
async def test_ids_in_paths(
    stack: Stack, path: tuple[str, str], raw: bytes, encoded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    method, template = path
    before, after = template.split("{}")
    spelled = quote_from_bytes(raw, safe="").encode() if encoded else raw.translate(None, b" \r\n\x00?#")
    body = b'{"capability": "tyrum.desktop.screenshot"}' if "dispatch" in template else b"{}"
    headers = [
        ("Authorization", f"Bearer {ADMIN_TOKEN}".encode()),
        ("Content-Type", b"application/json"),
        ("Content-Length", str(len(body)).encode()),
    ]
    with caplog.at_level(logging.WARNING):
        answer = await exchange(
            stack.url, method, before.encode() + spelled + after.encode(), headers, body, silence=30
        )
    assert answer is not None
    assert answer.status in (400, 404, 405) or (answer.status == 200 and not spelled), (answer, spelled)
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


@pytest.mark.xdist_group("attack")
@attack(EXAMPLES)
@given(name=texts, actor=texts, reason=texts)
async def test_names_come_back_as_they_were_given(stack: Stack, name: str, actor: str, reason: str) -> None:
    made = await stack.http.post("/tokens", content=json.dumps({"name": name}), headers=JSON)
    if made.status_code == 201:
        assert made.json()["token"]["name"] == name
        headers = {"Authorization": f"Bearer {made.json()['bearer_token']}"}
        seen = await stack.http.get("/audit", params={"actor": name}, headers=headers)
        assert seen.status_code == 200
        await stack.http.post(f"/tokens/{made.json()['token']['token_id']}/revoke")
    else:
        assert made.status_code in (400, 409), made.text
    created = await stack.http.post(
        "/desktop-environments", content=json.dumps({"host_id": stack.host_id, "label": actor}), headers=JSON
    )
    assert created.status_code in (201, 400), created.text
    if created.status_code == 201:
        path = f"/desktop-environments/{created.json()['environment']['environment_id']}"
        listed = await stack.http.get("/desktop-environments", params={"label": actor})
        assert any(
            path.endswith(e["environment_id"]) and e["label"] == actor for e in listed.json()["environments"]
        )
        gone = await stack.http.request("DELETE", path, content=json.dumps({"reason": reason}), headers=JSON)
        assert gone.status_code in (202, 400), gone.text


JSON = {"Content-Type": "application/json"}
