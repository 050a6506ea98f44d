"""The environment's directory on the host (protocol section 8.1): paths, modes, atomic writes, removal."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from activities.failures import failure
from models.errors import ErrorCode
from models.identifiers import is_environment_id

DIRECTORY_MODE = 0o700
FILE_MODE = 0o600


@dataclass(frozen=True)
class EnvironmentFiles:
    """Where one environment's files are; `home` is the directory of all of them."""

    home: Path

    @property
    def owner(self) -> Path:
        """Of which host and which installation the directory is."""
        return self.home / "owner.json"

    @property
    def runtime_home(self) -> Path:
        """Mounted as the node's home, writable."""
        return self.home / "runtime-home"

    @property
    def identity(self) -> Path:
        """The device identity with its private key."""
        return self.home / "identity" / "desktop-node" / "device-identity.json"

    @property
    def rotation(self) -> Path:
        """For which generation the identity was last rotated."""
        return self.home / "identity" / "rotation.json"

    @property
    def token(self) -> Path:
        """The node's bearer token and a newline."""
        return self.home / "secrets" / "gateway-token"

    @property
    def vnc_password(self) -> Path:
        """The desktop's VNC password as `vncpasswd` writes one."""
        return self.home / "secrets" / "vnc-password"

    @property
    def token_record(self) -> Path:
        """What may be known of the token, and its generation."""
        return self.home / "secrets" / "gateway-token.json"

    def make_directories(self) -> None:
        """Every directory, 0700, and the empty file the identity is mounted over."""
        desktop_node = self.runtime_home / "desktop-node"
        for directory in (
            self.home.parent,
            self.home,
            self.identity.parent.parent,
            self.identity.parent,
            self.token.parent,
            self.runtime_home,
            desktop_node,
        ):
            make_directory(directory)
        # Docker would make the mount point itself, as root.
        mount_point = desktop_node / self.identity.name
        if not os.path.lexists(mount_point):
            os.close(os.open(mount_point, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, FILE_MODE))


def environment_files(state_dir: Path, environment_id: str) -> EnvironmentFiles:
    """The environment's files.

    Raises:
        ApplicationError: the id is not one, so that it could name another directory.
    """
    if not is_environment_id(environment_id):
        raise failure(ErrorCode.INTERNAL, "not an environment id", lasting=True)
    home = state_dir / "desktop-environments" / environment_id
    if home.is_symlink():
        message = f"{home} is a symbolic link; remove it"
        raise failure(ErrorCode.INTERNAL, message, lasting=True)
    return EnvironmentFiles(home)


def make_directory(path: Path) -> None:
    """Have the directory with mode 0700, whatever the umask; parents are made as well."""
    path.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    if path.is_symlink():
        raise failure(ErrorCode.INTERNAL, f"{path} is a symbolic link; remove it", lasting=True)
    if path.stat().st_mode & 0o777 != DIRECTORY_MODE:
        path.chmod(DIRECTORY_MODE)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace the file's whole content, mode 0600: a crash leaves the old one or the new one, never half of
    it.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in the file; None where there is no file, or none that holds one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def give_to(path: Path, uid: int, gid: int) -> None:
    """Change the owner of the file, or of the directory and everything in it; symbolic links are not
    followed.

    A directory whose top has the owner already is taken to be done: what is in it is its owner's affair.
    """
    if os.geteuid() != 0:
        return
    status = path.lstat()
    if (status.st_uid, status.st_gid) == (uid, gid):
        return
    if path.is_dir() and not path.is_symlink():
        for parent, directories, files in os.walk(path):
            for name in (*directories, *files):
                os.lchown(os.path.join(parent, name), uid, gid)
    os.lchown(path, uid, gid)


def remove_tree(path: Path) -> None:
    """Have no such directory, whoever owns what is in it; symbolic links are not followed.

    Raises:
        ApplicationError: something in it cannot be removed.
    """
    if path.is_symlink():
        path.unlink()
        return
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        if path.exists():
            remove_tree(path)
    except OSError as error:
        message = f"{error.filename or path} cannot be removed: {error.strerror}; remove it by hand"
        raise failure(ErrorCode.INTERNAL, message) from error
