"""The codec endpoint as the Web UI's browser reaches it: any body, any path, any capability."""

import base64
import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.applications import Starlette
from temporalio.api.common.v1 import Payload

from api import errors
from api.codec import codec_app
from models.codec_address import codec_capability
from models.keyring import KeyRing
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.junk import deep, dumped, mutations, texts, values
from tests.codec.test_codec import sealed

pytestmark = pytest.mark.timeout(SECONDS)

ADMIN_TOKEN = "an-admin-token-for-tests"
CAPABILITY = codec_capability(ADMIN_TOKEN)
RING = KeyRing("new", {"old": b"o" * 32, "new": b"n" * 32})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


SEALED = sealed(Payload(metadata={"encoding": b"json/plain"}, data=b'"a secret"'), RING)
SOUND: list[Any] = [
    {"payloads": [{"metadata": {"encoding": b64(b"json/plain")}, "data": b64(b'"x"')}]},
    {
        "payloads": [
            {
                "metadata": {name: b64(value) for name, value in SEALED.metadata.items()},
                "data": b64(SEALED.data),
            }
        ]
    },
]
bodies = (
    st.binary(max_size=200)
    | deep.map(str.encode)
    | values.map(dumped).map(str.encode)
    | mutations(SOUND).map(dumped).map(str.encode)
    | st.sampled_from(SOUND).map(dumped).map(str.encode)
)


def _app() -> Starlette:
    # As the admin application is made.
    app = Starlette()
    app.router.redirect_slashes = False
    errors.install(app)
    app.mount("/codec", codec_app(RING, ADMIN_TOKEN, ["http://127.0.0.1:8233"]))
    return app


@attack(EXAMPLES * 20)
@given(body=bodies, verb=st.sampled_from(["encode", "decode"]))
async def test_any_body_is_answered_or_refused(body: bytes, verb: str) -> None:
    # The transport raises what the application raises: nothing may.
    async with httpx.AsyncClient(transport=httpx.ASGITransport(_app()), base_url="http://test") as http:
        answer = await http.post(f"/codec/{CAPABILITY}/{verb}", content=body)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert set(answer.json()) == {"error", "message"}
            assert "a secret" not in answer.text
        else:
            json.loads(answer.content)


@attack(EXAMPLES * 10)
@given(
    capability=texts.filter(lambda text: text != CAPABILITY)
    | st.sampled_from([CAPABILITY[:-1], CAPABILITY + "A"]),
    rest=st.sampled_from(["decode", "encode", "decode/", "", "/decode", "..", "decode/decode"]),
    method=st.sampled_from(["POST", "GET", "OPTIONS"]),
    origin=st.sampled_from([None, "http://127.0.0.1:8233", "http://evil.example", "null"]),
)
@example(capability="x", rest="decode/", method="POST", origin=None)
@example(capability="x", rest="decode", method="GET", origin=None)
async def test_no_other_capability_opens(
    capability: str, rest: str, method: str, origin: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = "/codec/" + "".join(f"%{byte:02X}" for byte in capability.encode("utf-8", "replace")) + f"/{rest}"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(_app()), base_url="http://test") as http:
        headers = {} if origin is None else {"Origin": origin}
        with caplog.at_level(logging.WARNING):
            answer = await http.request(method, path, content=dumped(SOUND[1]), headers=headers)
    assert answer.status_code in (400, 404, 405), (path, answer.status_code)
    assert set(answer.json()) == {"error", "message"}
    assert "location" not in answer.headers
    if origin not in (None, "http://127.0.0.1:8233"):
        assert "access-control-allow-origin" not in answer.headers
