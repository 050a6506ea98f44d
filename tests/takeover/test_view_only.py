"""The filter of view-only sessions: what passes, what does not, however it is cut."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.rfb.view_only import ViewOnlyFilter

INIT = b"\x01"
EXTENDED_MOUSE = -316

u8, u16, u32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def packed(layout: str, *fields: st.SearchStrategy[int]) -> st.SearchStrategy[bytes]:
    return st.tuples(*fields).map(lambda values: struct.pack(layout, *values))


pixel_format = st.binary(min_size=19, max_size=19).map(lambda rest: b"\x00" + rest)
encodings = st.lists(st.integers(-(2**31), 2**31 - 1).filter(lambda n: n != EXTENDED_MOUSE), max_size=40).map(
    lambda all_: struct.pack(f">BxH{len(all_)}i", 2, len(all_), *all_)
)
update_request = packed(">BBHHHH", st.just(3), u8, u16, u16, u16, u16)
continuous = packed(">BBHHHH", st.just(150), u8, u16, u16, u16, u16)
fence = st.tuples(u32, st.binary(max_size=64)).map(
    lambda parts: struct.pack(">B3xIB", 248, parts[0], len(parts[1])) + parts[1]
)
ALLOWED = st.one_of(pixel_format, encodings, update_request, continuous, fence)

key = packed(">BBxxI", st.just(4), u8, u32)
pointer = packed(">BBHH", st.just(5), u8, u16, u16)
cut_text = st.binary(max_size=300).map(lambda text: struct.pack(">B3xi", 6, len(text)) + text)
extended_cut_text = st.binary(max_size=300).map(lambda text: struct.pack(">B3xi", 6, -len(text)) + text)
qemu_key = packed(">BBHII", st.just(255), st.just(0), u16, u32, u32)
qemu_audio = st.sampled_from([0, 1]).map(lambda operation: struct.pack(">BBH", 255, 1, operation))
qemu_format = packed(">BBHBBI", st.just(255), st.just(1), st.just(2), u8, u8, u32)
desktop_size = st.lists(st.binary(min_size=16, max_size=16), max_size=5).map(
    lambda screens: struct.pack(">BxHHBx", 251, 800, 600, len(screens)) + b"".join(screens)
)
xvp = packed(">BxBB", st.just(250), u8, u8)
DROPPED = st.one_of(
    key, pointer, cut_text, extended_cut_text, qemu_key, qemu_audio, qemu_format, desktop_size, xvp
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(ends)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(ALLOWED.map(lambda m: (True, m)), DROPPED.map(lambda m: (False, m)))), st.data())
def test_exactly_the_allowed_messages_pass(messages: list[tuple[bool, bytes]], data: st.DataObject) -> None:
    said = b"\x00" + b"".join(message for _, message in messages)
    places = data.draw(st.lists(st.integers(0, len(said)), max_size=20))
    judge = ViewOnlyFilter()
    passed = b"".join(judge.feed(piece) for piece in cut(said, places))
    assert passed == INIT + b"".join(message for allowed, message in messages if allowed)
    assert judge.refused is None


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=20))
def test_any_bytes_cut_anyhow_give_the_same(said: bytes, places: list[int]) -> None:
    whole, pieces, bytewise = ViewOnlyFilter(), ViewOnlyFilter(), ViewOnlyFilter()
    expected = whole.feed(said)
    assert b"".join(pieces.feed(piece) for piece in cut(said, places)) == expected
    assert b"".join(bytewise.feed(said[i : i + 1]) for i in range(len(said))) == expected
    assert pieces.refused == bytewise.refused == whole.refused
    again = ViewOnlyFilter()
    assert again.feed(expected) == expected, "what passes is nothing but allowed messages, whole ones"


@pytest.mark.parametrize("kind", sorted(set(range(256)) - {0, 2, 3, 4, 5, 6, 150, 248, 250, 251, 255}))
def test_an_unknown_message_ends_it(kind: int) -> None:
    judge = ViewOnlyFilter()
    assert judge.feed(INIT + struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1) + bytes([kind])) == INIT + struct.pack(
        ">BBHHHH", 3, 0, 0, 0, 1, 1
    )
    assert judge.refused is not None and str(kind) in judge.refused
    assert judge.feed(struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1)) == b""


@pytest.mark.parametrize(
    "message",
    [
        struct.pack(">BxH", 2, 1025),
        struct.pack(">B3xIB", 248, 0, 65),
        struct.pack(">BBH", 255, 2, 0),
        struct.pack(">BBH", 255, 1, 3),
    ],
    ids=["too many encodings", "too long a fence", "QEMU's unknown", "QEMU's unknown audio"],
)
def test_what_cannot_be_judged_ends_it(message: bytes) -> None:
    judge = ViewOnlyFilter()
    assert judge.feed(INIT + message) == INIT
    assert judge.refused


def test_a_viewer_that_wants_the_desktop_for_itself_shares_it() -> None:
    assert ViewOnlyFilter().feed(b"\x00") == b"\x01"


def test_longer_pointer_events_are_not_agreed_upon() -> None:
    said = struct.pack(">BxH3i", 2, 3, 7, EXTENDED_MOUSE, -223)
    assert ViewOnlyFilter().feed(INIT + said) == INIT + struct.pack(">BxH2i", 2, 2, 7, -223)


def test_a_long_paste_is_dropped_and_not_held() -> None:
    judge = ViewOnlyFilter()
    length = 50_000_000
    assert judge.feed(INIT + struct.pack(">B3xi", 6, -length)) == INIT
    block = bytes(1_000_000)
    assert all(judge.feed(block) == b"" for _ in range(50))
    request = struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1)
    assert judge.feed(request) == request
