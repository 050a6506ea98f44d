"""Places to go on from: `Last-Event-ID`, `after`, cursors and times, by the raw bytes of a request."""

import base64
import logging
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inventory.timeline import parse_place
from tests.api.stack import ADMIN_TOKEN, Stack
from tests.attack.budget import EXAMPLES, SECONDS, attack
from tests.attack.junk import ODD_TEXTS
from tests.attack.raw import Answer, exchange
from tests.support.waiting import eventually

pytestmark = [pytest.mark.timeout(SECONDS), pytest.mark.xdist_group("attack")]

AUTHORIZED = ("Authorization", f"Bearer {ADMIN_TOKEN}".encode())
ODD_PLACES = [
    *(
        b"-1",
        b"-1.0",
        b"0",
        b"-2",
        b"+1",
        b"1.",
        b".1",
        b"1.1.1",
        b"9999999999.9999999999999999999",
        b"99999999999",
    ),
    *(b"1.-1", b"1e3", b"0x1", b"\xd9\xa1", b"1\n2", b"1.0\t", b" 1.0", b"NaN", b"1,1", b"9" * 5000),
]
ODD_TIMES = [
    *(
        b"0001-01-01T00:00:00+23:59",
        b"9999-12-31T23:59:59-23:59",
        b"0001-01-01T00:00:00Z",
        b"2026-11-23T12:00:00",
    ),
    *(
        b"1e300",
        b"-1e20",
        b"99999999999999999999",
        b"2026-02-30T00:00:00Z",
        b"2026-11-23T24:00:00Z",
        b"0",
        b"nan",
    ),
    *(b"2026-11-23T12:00:00+99:99", b"2026-11-23T12:00:00.0000000000001Z", b"2026-11-23", b"inf"),
]
odd = st.sampled_from([text.encode("utf-8", "surrogatepass") for text in ODD_TEXTS]) | st.binary(max_size=40)
places = st.sampled_from(ODD_PLACES) | odd
cursors = (
    st.tuples(st.sampled_from(ODD_TIMES) | odd, st.sampled_from([b" ", b"", b"\n"]), odd)
    .map(b"".join)
    .map(lambda text: base64.urlsafe_b64encode(text).rstrip(b"="))
    | odd
)
times = st.sampled_from(ODD_TIMES) | odd


@pytest.fixture(autouse=True)
def nothing_unexpected(caplog: pytest.LogCaptureFixture) -> Any:
    """No test here may leave an error, and so no traceback, in any log."""
    with caplog.at_level(logging.WARNING):
        yield
    assert not [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR or r.exc_info]


async def asked(stack: Stack, path: str, query: dict[str, bytes], *headers: tuple[str, bytes]) -> Answer:
    """One request with these raw values; what must hold of any answer holds."""
    said = "&".join(f"{name}={quote_from_bytes(value, safe='')}" for name, value in query.items())
    target = f"{path}?{said}".encode()
    answer = await exchange(stack.url, "GET", target, [AUTHORIZED, *headers], silence=30)
    assert answer is not None and answer.status in (200, 400), (answer, target, headers)
    if answer.status == 400:
        assert b"Traceback" not in answer.body
    return answer


@attack(EXAMPLES * 10)
@given(
    after=places,
    header=places.map(lambda raw: raw.translate(None, b"\r\n\x00")),
    where=st.sampled_from("ahb"),
)
async def test_events_resume_or_refuse(stack: Stack, after: bytes, header: bytes, where: str) -> None:
    path = f"/desktop-environments/{await _one(stack)}"
    query = {} if where == "h" else {"after": after}
    headers = [] if where == "a" else [("Last-Event-ID", header)]
    # A stream ends a moment after its client has gone, and there may be only so many.
    await eventually(lambda: len(stack.app.state.feed) == 0, "the stream before is let go")
    answer = await asked(stack, f"{path}/events", query, *headers)
    if answer.status == 200:
        assert answer.headers[b"content-type"].startswith(b"text/event-stream")
    await asked(stack, f"{path}/timeline", query)


@attack(EXAMPLES * 10)
@given(cursor=cursors)
async def test_cursors_of_lists(stack: Stack, cursor: bytes) -> None:
    await asked(stack, "/desktop-environments", {"cursor": cursor})
    await asked(stack, "/audit", {"cursor": cursor})


@attack(EXAMPLES * 10)
@given(since=times, until=times, action=odd, actor=odd)
async def test_filters_of_the_audit(
    stack: Stack, since: bytes, until: bytes, action: bytes, actor: bytes
) -> None:
    await asked(stack, "/audit", {"since": since})
    await asked(stack, "/audit", {"until": until})
    await asked(stack, "/audit", {"action": action, "actor": actor, "environment_id": actor})


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize(
    "at",
    [
        b"0001-01-01T00:00:00+23:59",
        b"9999-12-31T23:59:59-23:59",
        b"0",
        b"1795435200",
        b"-1e9",
        b"228168841802424",
    ],
)
async def test_times_that_utc_has_not_and_bare_numbers_are_refused(
    stack: Stack, name: str, at: bytes
) -> None:
    """Found here: the first were an unexpected error, the others a guess between seconds and milliseconds."""
    answer = await asked(stack, "/audit", {name: at})
    assert answer.status == 400 and name.encode() in answer.body


@attack(EXAMPLES * 40)
@given(st.text(max_size=40) | st.from_regex(r"-?[0-9]{1,30}(\.[0-9]{1,30})?"))
def test_a_place_is_read_as_it_is_written(text: str) -> None:
    place = parse_place(text)
    if place is not None:
        assert parse_place(str(place)) == place
        assert place.sequence >= -1 and 0 <= place.audit_id < 2**63


_made: dict[str, str] = {}


async def _one(stack: Stack) -> str:
    """An environment, the same for every example."""
    if stack.url not in _made:
        _made[stack.url] = await stack.create(label="attacked")
    return _made[stack.url]
