"""The node's bearer token (protocol sections 7.1 and 8.1): minted on the host, known elsewhere by its hash
only. The desktop's VNC password is derived from it.
"""

from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from activities.failures import failure
from activities.hostfiles import EnvironmentFiles, make_directory, read_json, write_file
from models import tokens, vnc
from models.errors import ErrorCode
from models.messages import NodeToken


class TokenRecord(NodeToken):
    """What is kept beside the token file."""

    generation: int


def mint_node_token(files: EnvironmentFiles, generation: int, ttl_seconds: int) -> NodeToken:
    """Write a fresh token for this generation; a repetition reports the one that is there.

    Raises:
        ApplicationError: a newer generation has its token already, which stays.
    """
    record = read_record(files)
    if record is not None and record.generation > generation:
        message = f"generation {record.generation} has its token already; generation {generation} is over"
        raise failure(
            ErrorCode.INTERNAL, message, phase="mint_node_token", generation=generation, non_retryable=True
        )
    if record is None or record.generation != generation or not _is_whole(files, record):
        record = _mint(files, generation, ttl_seconds)
    elif not files.vnc_password.exists():
        # A version that knew no password minted the token.
        _write_vnc_password(files, read_token(files) or "")
    return NodeToken.model_validate(record.model_dump())


def read_record(files: EnvironmentFiles) -> TokenRecord | None:
    """What is known of the token in the token file; None where nothing is."""
    try:
        return TokenRecord.model_validate(read_json(files.token_record))
    except ValidationError:
        return None


def read_token(files: EnvironmentFiles) -> str | None:
    """The token itself; None where there is none."""
    try:
        return files.token.read_text(encoding="utf-8").strip() or None
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _is_whole(files: EnvironmentFiles, record: TokenRecord) -> bool:
    token = read_token(files)
    return token is not None and tokens.sha256_hex(token) == record.token_sha256


def _mint(files: EnvironmentFiles, generation: int, ttl_seconds: int) -> TokenRecord:
    make_directory(files.home)
    make_directory(files.token.parent)
    token = tokens.mint()
    now = datetime.now(UTC)
    record = TokenRecord(
        token_id=token.token_id,
        token_sha256=tokens.sha256_hex(token.text),
        issued_at=now,
        expires_at=now + timedelta(seconds=ttl_seconds),
        generation=generation,
    )
    # The record goes last: a record without its token would be reported, a token without its record is minted
    # anew.
    write_file(files.token, token.text + "\n")
    _write_vnc_password(files, token.text)
    write_file(files.token_record, record.model_dump_json() + "\n")
    return record


def _write_vnc_password(files: EnvironmentFiles, token: str) -> None:
    write_file(files.vnc_password, vnc.password_file(tokens.vnc_password(token)))
