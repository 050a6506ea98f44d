"""Takeover addresses: the one entry link and the one trusted upstream (protocol section 9.1)."""

import re
from ipaddress import IPv6Address
from urllib.parse import quote, urlsplit

TAKEOVER_PREFIX = "/desktop-takeover/s/"
"""Everything below it opens by the token in the path and by nothing else."""

VIEW_ONLY_PARAMETER = "view_only"
"""noVNC's name for it."""

LOOPBACK_ORIGIN = "http://127.0.0.1"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")


def is_takeover_token(text: str) -> bool:
    """Whether `text` has the form of a takeover token: 32 bytes, base64url without padding."""
    return _TOKEN.fullmatch(text) is not None


def websocket_path(token: str) -> str:
    """What the noVNC page of this session is told to open, relative to the origin (protocol section 9.1)."""
    return f"{TAKEOVER_PREFIX.lstrip('/')}{token}/websockify"


def entry_url(public_url: str, token: str, *, view_only: bool = False) -> str:
    """The link that opens a takeover session; any path of `public_url` is dropped (protocol section 9.1).

    Args:
        view_only: noVNC's page is told so too, and shows no controls; the proxy does not rely on it.
    """
    parts = urlsplit(public_url)
    path = quote(websocket_path(token), safe="")
    link = f"{parts.scheme}://{parts.netloc}{TAKEOVER_PREFIX}{token}/vnc.html?autoconnect=true&path={path}"
    return f"{link}&{VIEW_ONLY_PARAMETER}=true" if view_only else link


def trusted_origin(advertised: str) -> str:
    """The origin, without a port, that published ports are reached under.

    `advertised` when it is a bare http(s) origin without port, path, query, fragment or credentials; or else
    the loopback origin (protocol section 9.1).
    """
    try:
        parts = urlsplit(advertised)
        host = parts.hostname or ""
        port = parts.port
    except ValueError:
        return LOOPBACK_ORIGIN
    shown = f"[{host}]" if ":" in host else host
    bare = parts.scheme in ("http", "https") and parts.path in ("", "/") and port is None
    if not bare or not _is_host(host) or parts.netloc.lower() != shown or parts.query or parts.fragment:
        return LOOPBACK_ORIGIN
    if not advertised.isprintable() or "?" in advertised or "#" in advertised:
        return LOOPBACK_ORIGIN
    return f"{parts.scheme}://{shown}"


def novnc_url(advertised: str, novnc_port: int, password: str | None = None) -> str:
    """Address of the noVNC page itself, for the direct redirect (protocol section 8.4).

    Args:
        password: put into the fragment, which a browser sends to nobody.
    """
    page = f"{trusted_origin(advertised)}:{novnc_port}/vnc.html?autoconnect=true"
    return page if password is None else f"{page}#password={quote(password, safe='')}"


def _is_host(host: str) -> bool:
    if ":" not in host:
        return _HOSTNAME.fullmatch(host) is not None
    try:
        return str(IPv6Address(host)) != ""
    except ValueError:
        return False
