"""This machine's own Debian sources, in the form mmdebstrap takes, so that an image made here has the same ones."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.machine import os_release

_APT = Path("/etc/apt")
_OWN_CERTIFICATES = Path("/usr/local/share/ca-certificates")


@dataclass(frozen=True)
class Mirrors:
    """Arguments of mmdebstrap.

    Attributes:
        mirrors: one-line entries, `deb URI SUITE COMPONENT…`.
        options: what an image needs besides, to use them.
    """

    mirrors: list[str]
    options: list[str]

    def __bool__(self) -> bool:
        return bool(self.mirrors)


@dataclass(frozen=True)
class _Entry:
    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str


def mirrors(codename: str, folder: Path, apt: Path = _APT) -> Mirrors:
    """The sources of Debian's own packages for this release.

    Third parties' sources are left out, and so is everything on a machine that is not of this release.

    Args:
        codename: Debian release, such as `bookworm`.
        folder: where a hook script may be written.
        apt: apt's configuration.
    """
    release = os_release()
    if release.get("ID") != "debian" or release.get("VERSION_CODENAME") != codename:
        return Mirrors([], [])
    entries = [
        entry
        for entry in [*_one_line(apt), *_deb822(apt)]
        if re.fullmatch(rf"{codename}(-updates|-security|/updates)?", entry.suite)
        and "main" in entry.components
        # Debian's own key: others use Debian's suite names for their repositories, too.
        and (not entry.signed_by or "debian-archive" in entry.signed_by)
        # A folder or a proxy of this machine is not there inside an image.
        and re.match(r"https?://(?!localhost|127\.|\[::1\])", entry.uri)
    ]
    if not any(entry.suite == codename for entry in entries):
        return Mirrors([], [])
    lines = list(dict.fromkeys(f"deb {e.uri} {e.suite} {' '.join(e.components)}" for e in entries))
    secure = any(entry.uri.startswith("https:") for entry in entries)
    return Mirrors(lines, _trust(folder) if secure else [])


def _trust(folder: Path) -> list[str]:
    """An image with https sources needs certificate authorities, and this machine's own ones as well."""
    hook = folder / "trust.sh"
    hook.write_text(
        "#!/bin/sh\nset -eu\n"
        f'[ ! -d {_OWN_CERTIFICATES} ] || cp -rL {_OWN_CERTIFICATES}/. "$1{_OWN_CERTIFICATES}/"\n'
        'chroot "$1" update-ca-certificates\n',
        encoding="utf-8",
    )
    hook.chmod(0o755)
    return ["--include=ca-certificates", f"--customize-hook={hook}"]


def _one_line(apt: Path) -> Iterator[_Entry]:
    for path in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]:
        for line in _lines(path):
            match = re.fullmatch(
                r"deb\s+(?:\[([^]]*)\]\s*)?(\S+)\s+(\S+)\s+(.*)", line.partition("#")[0].strip()
            )
            if match is not None:
                options = match[1] or ""
                signed = re.search(r"signed-by=(\S+)", options)
                yield _Entry(match[2], match[3], tuple(match[4].split()), signed[1] if signed else "")


def _deb822(apt: Path) -> Iterator[_Entry]:
    for path in sorted(apt.glob("sources.list.d/*.sources")):
        text = "\n".join(line for line in _lines(path) if not line.startswith("#"))
        for stanza in re.split(r"\n\s*\n", text):
            # A folded field goes on in lines that begin with a blank.
            unfolded = re.sub(r"\n[ \t]+", " ", stanza)
            pairs = (line.partition(":") for line in unfolded.splitlines())
            fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
            if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
                continue
            for uri in fields.get("uris", "").split():
                for suite in fields.get("suites", "").split():
                    components = tuple(fields.get("components", "").split())
                    yield _Entry(uri, suite, components, fields.get("signed-by", ""))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
