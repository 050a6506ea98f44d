"""PostgreSQL's programs from Debian's packages, for the tests; no cluster is made or started."""

import os
import re
import shutil
from pathlib import Path

from scripts.console import SetupError, say
from scripts.machine import apt_install, can_install_packages, exclusive

_DEBIAN = Path("/usr/lib/postgresql")
_CREATECLUSTER = Path("/etc/postgresql-common/createcluster.d")


def programs() -> Path | None:
    """Folder with `initdb` and `postgres`: the newest of Debian's, else the one on PATH."""
    installed = [path for path in _DEBIAN.glob("*/bin") if (path / "initdb").exists()]
    if installed:
        return max(installed, key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0))
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


def ensure() -> None:
    """See to it that PostgreSQL's programs are there.

    Raises:
        SetupError: they are not, and we may not install them.
    """
    if programs() is None:
        if not can_install_packages():
            raise SetupError(
                "PostgreSQL is missing: install it (on Debian, as root: apt-get install postgresql)"
            )
        with exclusive("postgresql"):
            if programs() is None:
                _install()
    found = programs()
    if found is None:
        raise SetupError(f"the package postgresql is installed, but there is no initdb below {_DEBIAN}")
    say(f"PostgreSQL's programs are in {found}")


def _install() -> None:
    # Debian's package makes a cluster and starts it; whoever runs our tests did not ask for a server.
    drop_in = _CREATECLUSTER / "desktop-environments-setup.conf"
    made = [folder for folder in (_CREATECLUSTER.parent, _CREATECLUSTER) if not folder.exists()]
    os.makedirs(_CREATECLUSTER, exist_ok=True)
    drop_in.write_text("create_main_cluster = false\n", encoding="utf-8")
    try:
        apt_install(["postgresql"])
    finally:
        drop_in.unlink(missing_ok=True)
        for folder in reversed(made):
            if not any(folder.iterdir()):
                folder.rmdir()
