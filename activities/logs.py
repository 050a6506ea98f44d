"""The log tail of a container (protocol section 11.3), made fit for history: bounded, printable, without
tokens.
"""

import re

from docker.errors import APIError, NotFound

from activities.engine import Engine
from models.messages import LOG_LINE_CHARS, LOG_TAIL_LINES

READ_LINES = 2 * LOG_TAIL_LINES
"""Lines asked for; blank ones are dropped from them."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(\x07|\x1b\\)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_TOKENS = re.compile(r"(tyrum-token\.v1\.|tyrum-auth\.)[A-Za-z0-9._=-]+")


def log_tail(engine: Engine, container_id: str) -> list[str] | None:
    """The last lines of stdout and stderr in the order they were written; None where there is no container.

    Raises:
        DOCKER_ERRORS: the engine does not answer.
    """
    try:
        raw = engine.look.logs(container_id, stdout=True, stderr=True, tail=READ_LINES)
    except NotFound:
        return None
    except APIError as error:
        return [f"(log not readable: {error.explanation})"]
    return tidy(raw)


def tidy(raw: bytes) -> list[str]:
    """Lines as they are kept: right-trimmed, not blank, bounded in number and length, printable, tokens
    masked.
    """
    kept = []
    for line in raw.decode("utf-8", "replace").splitlines():
        # A token is masked before the line is cut: half a token would no longer be recognised.
        plain = _TOKENS.sub(r"\1[masked]", _CONTROL.sub("", _ESCAPES.sub("", line))).rstrip()
        if plain:
            kept.append(plain[:LOG_LINE_CHARS])
    return kept[-LOG_TAIL_LINES:]
