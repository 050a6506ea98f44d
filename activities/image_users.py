"""The numbers behind the user an image names: what the host's files are given to."""

import io
import tarfile

from docker.errors import NotFound

from activities.engine import Engine
from activities.failures import failure
from models.errors import ErrorCode

ACCOUNT_BYTES = 1_000_000


def numeric_user(user: str) -> tuple[int, int] | None:
    """User and group id of a user in numbers, empty for root; None for a name."""
    name, _, group = (user or "0:0").partition(":")
    if name.isdecimal() and (group.isdecimal() or not group):
        return int(name), int(group or name)
    return None


def user_in_image(engine: Engine, container_id: str, user: str) -> tuple[int, int]:
    """User and group id of a user by name, from the account file of a container made from the image.

    Raises:
        ApplicationError: `image_mismatch`, the image does not know the user.
        DOCKER_ERRORS: the engine does not answer.
    """
    name, _, group = user.partition(":")
    for line in _read(engine, container_id, "/etc/passwd").splitlines():
        parts = line.split(":")
        if len(parts) < 4 or name not in (parts[0], parts[2]):
            continue
        if parts[2].isdecimal() and parts[3].isdecimal():
            return int(parts[2]), int(group) if group.isdecimal() else int(parts[3])
    message = f"the image runs as user {name}, whom its /etc/passwd does not know"
    raise failure(ErrorCode.IMAGE_MISMATCH, message, phase="start_container")


def _read(engine: Engine, container_id: str, path: str) -> str:
    try:
        parts, _ = engine.work.get_archive(container_id, path)
    except NotFound:
        return ""
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                return content.read(ACCOUNT_BYTES).decode("utf-8", "replace")
    return ""
