"""The upgrade: which token it carries, and who may try again (protocol section 1.1)."""

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from time import monotonic
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from models.tokens import ADMIN_COOKIE, decode_subprotocol

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_ADDRESSES_KEPT = 10_000


def token_of(connection: HTTPConnection, subprotocols: Iterable[str]) -> str | None:
    """The token of an upgrade: `Authorization`, else the cookie from the same origin, else the subprotocol.

    A bad token in a place of higher rank is not made good by one in a lower.
    """
    parts = connection.headers.get("authorization", "").split(" ")
    if len(parts) == 2 and parts[0] == "Bearer" and parts[1]:
        return parts[1]
    cookie = connection.cookies.get(ADMIN_COOKIE)
    if cookie and _same_origin(connection):
        return cookie
    return next((token for entry in subprotocols if (token := decode_subprotocol(entry))), None)


def _same_origin(connection: HTTPConnection) -> bool:
    try:
        origin = urlsplit(connection.headers.get("origin", ""))
        host = urlsplit(f"//{connection.headers.get('host', '')}")
        default = _DEFAULT_PORTS.get(origin.scheme)
        if default is None or not origin.hostname:
            return False
        return (origin.hostname, origin.port or default) == (host.hostname, host.port or default)
    except ValueError:
        return False


class FailureLimit:
    """Refused upgrades and handshakes per address, in a sliding window.

    Only failures count, and an address over its limit is not shut out but asked for a live node token before the
    101: sandboxes share addresses, and none may lock out another (the reference's ten upgrades a minute for all
    made twenty starts take 95 s).

    Args:
        allowed: failures in one window. window: seconds.
    """

    def __init__(self, allowed: int, window: float, clock: Callable[[], float] = monotonic) -> None:
        self._allowed = allowed
        self._window = window
        self._clock = clock
        self._failures: OrderedDict[str, deque[float]] = OrderedDict()

    def failed(self, address: str) -> None:
        """Count one failure."""
        times = self._failures.setdefault(address, deque(maxlen=self._allowed))
        times.append(self._clock())
        self._failures.move_to_end(address)
        if len(self._failures) > _ADDRESSES_KEPT:
            self._failures.popitem(last=False)

    def retry_after(self, address: str) -> int | None:
        """Whole seconds until the address is below its limit again, None when it is."""
        times = self._failures.get(address)
        if times is None or len(times) < self._allowed:
            return None
        left = times[0] + self._window - self._clock()
        return max(1, math.ceil(left)) if left > 0 else None
