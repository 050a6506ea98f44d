"""Admin tokens: the configured one, and those of the inventory (design section 5, protocol section 7.1)."""

import hmac

import anyio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from api.database import DEADLINE_SECONDS
from inventory.admin_tokens import CONFIGURED_OPERATOR, AdminTokenVerifier
from inventory.engine import describe, is_unavailable
from models.errors import Unavailable

_MAX_TOKEN_CHARS = 512


class AdminCredentials:
    """Tells which operator an admin token belongs to.

    Args:
        configured: `DESKTOP_ADMIN_TOKEN`, empty where there is none.
    """

    def __init__(self, configured: str, engine: Engine) -> None:
        self._configured = configured.encode()
        self._verifier = AdminTokenVerifier(engine)

    async def operator_name(self, token: str) -> str | None:
        """The operator's name, None for a token that is not live.

        Raises:
            Unavailable: the inventory, which knows the tokens, does not answer.
        """
        if not token or len(token) > _MAX_TOKEN_CHARS:
            return None
        # Surrogates cannot be encoded plainly, and a header may hold any byte.
        given = token.encode(errors="surrogateescape")
        if self._configured and hmac.compare_digest(given, self._configured):
            return CONFIGURED_OPERATOR
        try:
            with anyio.fail_after(DEADLINE_SECONDS):
                principal = await self._verifier.verify(token)
        except TimeoutError:
            raise Unavailable("the inventory, which knows the admin tokens, does not answer") from None
        except SQLAlchemyError as error:
            if not is_unavailable(error):
                raise
            raise Unavailable(f"the inventory, which knows the tokens, is away: {describe(error)}") from error
        return principal.name if principal else None
