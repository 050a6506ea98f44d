"""Where the codec endpoint is, for who serves it and who hands its address to the Temporal Web UI."""

import base64
import hmac

CODEC_PREFIX = "/codec"


def codec_capability(admin_token: str) -> str:
    """The path segment that opens the codec endpoint to a Web UI: an HMAC of the admin token, which stays unknown."""
    digest = hmac.digest(admin_token.encode(), b"desktop-environments codec endpoint", "sha256")
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
