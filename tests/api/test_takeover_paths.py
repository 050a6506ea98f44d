"""The takeover rules as functions: addresses, paths, queries (protocol section 9)."""

import hashlib
import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.takeover import paths
from api.takeover.relay import forwardable
from models.takeover import LOOPBACK_ORIGIN, entry_url, is_takeover_token, novnc_url, trusted_origin

VECTORS = json.loads((Path(__file__).parents[1] / "node-protocol-vectors.json").read_text())["takeover"]
TOKEN = "yNBduobmzK95WyqmQswG5V2yMguu7y6924xnPFIn6Ck"
PREFIX = f"/desktop-takeover/s/{TOKEN}/"


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_entry_url_vectors(vector: dict[str, str]) -> None:
    token = vector["token"]
    assert entry_url(vector["public_base_url"], token) == vector["entry_url"]
    assert entry_url(vector["public_base_url"] + "/base/path", token) == vector["entry_url"]
    assert hashlib.sha256(token.encode()).hexdigest() == vector["sha256_hex_stored"]
    assert is_takeover_token(token)
    # The link we hand out is canonical already: it does not redirect.
    assert paths.canonical_query(token, urlsplit(vector["entry_url"]).query.encode()) is None


@pytest.mark.parametrize(
    ("advertised", "origin"),
    [
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("https://desk.example", "https://desk.example"),
        ("https://desk.example/", "https://desk.example"),
        ("http://[::1]", "http://[::1]"),
        ("HTTP://Desk.Example", "http://desk.example"),
        *[
            (bad, LOOPBACK_ORIGIN)
            for bad in (
                "",
                "desk.example",
                "ftp://desk.example",
                "http://desk.example:8080",
                "http://desk.example/x",
                "http://desk.example?x",
                "http://desk.example#x",
                "http://u:p@desk.example",
                "http://u@desk",
                "http://[::1",
                "http://",
                "http://a b",
                "http://desk:99999",
                "javascript:alert(1)",
                "http://\nx",
                "http://desk.example?",
                "http://desk.example#",
                "http://[v1.x]",
                "http://a_b",
                "http://desk:",
            )
        ],
    ],
)
def test_only_a_bare_origin_is_trusted(advertised: str, origin: str) -> None:
    assert trusted_origin(advertised) == origin
    assert novnc_url(advertised, 6080) == f"{origin}:6080/vnc.html?autoconnect=true"


@given(st.text())
def test_redirects_lead_to_an_origin_and_nothing_else(advertised: str) -> None:
    parts = urlsplit(novnc_url(advertised, 32001))
    assert parts.scheme in ("http", "https") and parts.port == 32001
    assert parts.path == "/vnc.html" and parts.username is None


@pytest.mark.parametrize(
    "rest",
    [
        "vnc.html",
        "vnc_lite.html",
        "favicon.ico",
        "manifest.json",
        "websockify",
        "app/ui.js",
        "core/rfb.js",
        "core/a/b/c.js",
        "vendor/pako/lib.js",
        "app/locale/de.json",
        "images/x.svg",
        "include/x",
        "locale/x",
        "locales/x",
        "//vnc.html",
        "app//ui.js",
        "vnc%2Ehtml",
        "app/%C3%A9.js",
    ],
)
def test_allowed(rest: str) -> None:
    path = paths.parse(f"{PREFIX}{rest}".encode())
    assert path is not None and path.allowed


@pytest.mark.parametrize(
    "rest",
    [
        "index.html",
        "defaults.json",
        "app",
        "etc/passwd",
        "../healthz",
        "app/../../etc",
        "app/%2e%2e/x",
        "app/%2E%2E%2Fx",
        "app/%5c..%5cx",
        "app/a%2Fb",
        "app/%00",
        "app/%zz",
        "app/%",
        "app/%ff",
        "%61pp/x/..",
        "vnc.html/x",
        "websockify/x",
        "VNC.html",
        "apps/x",
        "./vnc.html",
        ".",
        "..",
        "%2e",
        "core/.",
        "desktop-environments",
        "vnc.html%00",
        "vnc.html%2f",
    ],
)
def test_denied(rest: str) -> None:
    path = paths.parse(f"{PREFIX}{rest}".encode())
    assert path is not None and not path.allowed


@pytest.mark.parametrize(
    "raw",
    [
        "/desktop-takeover/s/",
        "/desktop-takeover/s/token",
        "/desktop-takeover/s/token/",
        "/desktop-takeover/s//x",
        "/desktop-takeover/s/token///",
        "/elsewhere",
        "",
    ],
)
def test_token_and_rest_are_needed(raw: str) -> None:
    assert paths.parse(raw.encode()) is None


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode()))
def test_whatever_is_allowed_stays_inside(rest: bytes) -> None:
    path = paths.parse(PREFIX.encode() + rest)
    if path is None or not path.allowed:
        return
    assert path.upstream.isascii() and path.upstream.isprintable()
    assert path.upstream.startswith("/") and not path.upstream.startswith("//")
    assert not {".", ".."} & set(path.upstream.split("/"))
    assert not any(part.lower() in path.upstream.lower() for part in ("%2f", "%5c", "%00", "\\", "?", "#"))
    again = paths.parse(PREFIX.rstrip("/").encode() + path.upstream.encode())
    assert again is not None and again.segments == path.segments


_query = st.lists(
    st.tuples(
        st.sampled_from(["autoconnect", "path", "resize", "é~*"]) | st.text(max_size=8), st.text(max_size=12)
    )
)


@given(st.binary(max_size=200) | _query.map(lambda pairs: "&".join("=".join(p) for p in pairs).encode()))
def test_one_redirect_is_enough(query: bytes) -> None:
    canonical = paths.canonical_query(TOKEN, query)
    if canonical is None:
        return
    assert canonical.isascii() and canonical.isprintable()
    assert paths.canonical_query(TOKEN, canonical.encode()) is None
    pairs = parse_qsl(canonical, keep_blank_values=True)
    assert pairs[:2] == [("autoconnect", "true"), ("path", f"desktop-takeover/s/{TOKEN}/websockify")]


def test_other_parameters_are_kept() -> None:
    canonical = paths.canonical_query(TOKEN, b"path=evil&resize=scale&path=x&autoconnect=false&q=%E2%82%AC")
    assert canonical is not None
    assert parse_qsl(canonical)[2:] == [("resize", "scale"), ("q", "€")]
    spelled = f"path=desktop-takeover/s/{TOKEN}/websockify&resize=a~b*c&autoconnect=%74rue"
    assert paths.canonical_query(TOKEN, spelled.encode()) is None


def test_close_codes_that_may_be_sent_on() -> None:
    assert [code for code in range(990, 5100) if forwardable(code)] == [
        *(code for code in range(1000, 1015) if code not in (1004, 1005, 1006)),
        *range(3000, 5000),
    ]
    assert not forwardable(None)
