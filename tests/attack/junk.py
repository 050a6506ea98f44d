"""Values nobody should send: what the attacks are made of."""

import json
from typing import Any

from hypothesis import strategies as st

HUGE = 10**400
SURROGATE = "\ud800"
ODD_TEXTS = [
    *(
        "",
        " ",
        "\x00",
        "a\x00b",
        "\n",
        "a\r\nb: c",
        SURROGATE,
        "\udfff\ud800",
        "\ufeff",
        "\u2028",
        "\u202e",
        "é" * 2000,
    ),
    *(
        "..",
        "../..",
        "/etc/passwd",
        "\\\\host\\share",
        "a/b",
        "%2e%2e%2f",
        "%00",
        "-rf",
        "--privileged",
        "$(id)",
        "`id`",
    ),
    *(
        "' OR 1=1 --",
        "{{7*7}}",
        "<script>",
        "null",
        "NaN",
        "1e999",
        "true",
        "x" * 5000,
        "١٢٣",
        "\U0001f600",
    ),  # on purpose
]
ODD_NUMBERS = [
    0,
    -1,
    1.5,
    -0.0,
    2**31,
    2**53 + 1,
    2**63,
    2**64,
    -(2**63),
    HUGE,
    1e308,
    float("nan"),
    float("inf"),
]

texts = st.sampled_from(ODD_TEXTS) | st.text(max_size=60) | st.text(st.characters(), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(ODD_NUMBERS) | texts
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""JSON values, and what Python's `json` writes of the ones JSON has not: NaN, Infinity, lone surrogates."""


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """JSON as deep as that."""
    return opening * depth + closing * depth


deep = st.builds(
    nested,
    st.sampled_from([50, 130, 250, 1_000, 2_000]),
    st.sampled_from(["[", '{"a":', '{"payload":[']),
    st.sampled_from(["]", "}", "", "]}"]),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a JSON value: the path of every member, the whole included."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += places(inner, (*path, index))
    return found


REMOVED = object()


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another one in that place, or with nothing there where `new` is `REMOVED`."""
    if not path:
        return None if new is REMOVED else new
    head, *rest = path
    copied = dict(value) if isinstance(value, dict) else list(value)
    if rest or new is not REMOVED:
        copied[head] = changed(value[head], tuple(rest), new)
    else:
        del copied[head]
    return copied


@st.composite
def mutations(draw: st.DrawFn, originals: list[Any]) -> Any:
    """One of the originals with one to three members replaced, removed or added to."""
    value = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(value)))
        value = changed(value, path, draw(values | st.just(REMOVED)))
    if isinstance(value, dict) and draw(st.booleans()):
        value = value | {draw(texts): draw(values)}
    return value


def dumped(value: Any) -> str:
    """JSON text; a lone surrogate is written as an escape, as an attacker can."""
    return json.dumps(value)
