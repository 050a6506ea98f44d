"""Which addresses below the takeover prefix exist: pure functions, no I/O (protocol section 9.2)."""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from models.takeover import TAKEOVER_PREFIX, VIEW_ONLY_PARAMETER, websocket_path

VIEWER_PAGE = "vnc.html"
PAGES = frozenset({VIEWER_PAGE, "vnc_lite.html"})
_SINGLE = PAGES | {"favicon.ico", "manifest.json", "websockify"}
_FOLDERS = frozenset({"app", "core", "images", "include", "locale", "locales", "vendor"})

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_FIELDS = 100


@dataclass(frozen=True)
class TakeoverPath:
    """A path below the prefix, taken apart but not yet judged.

    Attributes:
        token: as presented; nothing is known of it.
        segments: percent-decoded and non-empty, or None where one cannot or must not be decoded.
    """

    token: str
    segments: tuple[str, ...] | None

    @property
    def allowed(self) -> bool:
        """Whether the upstream may be asked for it."""
        if not self.segments:
            return False
        first = self.segments[0]
        return first in _SINGLE if len(self.segments) == 1 else first in _FOLDERS

    @property
    def is_viewer(self) -> bool:
        """Whether it is the page that must carry the session's own parameters."""
        return self.segments == (VIEWER_PAGE,)

    @property
    def upstream(self) -> str:
        """The same path for the upstream, encoded anew so that it says what was judged."""
        return "/" + "/".join(quote(segment, safe="") for segment in self.segments or ())


def parse(raw_path: bytes) -> TakeoverPath | None:
    """Take a request's path apart; None where token or rest is missing.

    Args:
        raw_path: as on the wire, percent-encoded, without the query.
    """
    try:
        path = raw_path.decode("ascii")
    except UnicodeDecodeError:
        return None
    if not path.startswith(TAKEOVER_PREFIX):
        return None
    token, _, rest = path.removeprefix(TAKEOVER_PREFIX).partition("/")
    parts = [part for part in rest.split("/") if part]
    if not token or not parts:
        return None
    decoded = [_decode(part) for part in parts]
    segments = tuple(part for part in decoded if part is not None)
    return TakeoverPath(token, segments if len(segments) == len(parts) else None)


def canonical_query(token: str, query: bytes, *, view_only: bool = False) -> str | None:
    """The query the viewer page must be opened with, or None where it is that already.

    Decoded parameters are compared, so that two spellings of one query cannot redirect to each other
    (protocol section 12.24).
    """
    forced = {"autoconnect": "true", "path": websocket_path(token)}
    if view_only:
        forced[VIEW_ONLY_PARAMETER] = "true"
    try:
        pairs = parse_qsl(
            query.decode("ascii", "replace"),
            keep_blank_values=True,
            errors="replace",
            max_num_fields=_MAX_FIELDS,
        )
    except ValueError:
        pairs = []
    if all([value for name, value in pairs if name == key] == [wanted] for key, wanted in forced.items()):
        return None
    return urlencode([*forced.items(), *((name, value) for name, value in pairs if name not in forced)])


def safe_query(query: bytes) -> str:
    """The query for the upstream: as it came, with anything outside a URL's alphabet encoded."""
    return quote(query, safe="%/:?@!$&'()*+,;=-._~[]")


def _decode(segment: str) -> str | None:
    if _BROKEN_ESCAPE.search(segment):
        return None
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if text in (".", "..") or any(character in text for character in "/\\\0") else text
