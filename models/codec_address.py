"""Where the codec endpoint is, for who serves it and who hands its address to the Temporal Web UI."""

import base64
import hmac
import re

CODEC_PREFIX = "/codec"

_CAPABILITY = re.compile(rf"({CODEC_PREFIX}/+)(?!/|(?:en|de)code\b)[^/?\s\"]+", re.IGNORECASE)


def codec_capability(admin_token: str) -> str:
    """The path segment that opens the codec endpoint to a Web UI: an HMAC of the admin token, which stays unknown."""
    digest = hmac.digest(admin_token.encode(), b"desktop-environments codec endpoint", "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def hide_capability(text: str) -> str:
    """The text without the capability of any address of the codec endpoint in it: for logs and the audit."""
    return _CAPABILITY.sub(r"\1…", text)
