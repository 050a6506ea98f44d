"""The desktop's environment variables (node-protocol.md section 8.3)."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass


class SettingsError(Exception):
    """An environment variable has a value that cannot work; the message names the variable."""


@dataclass(frozen=True)
class DesktopSettings:
    """What the X server, noVNC and the desktop session need to know.

    Attributes:
        display: X display name, ``:N``.
        width: pixels.
        height: pixels.
        depth: bits per pixel of colour, 16 or 24.
        vnc_port: TCP port of the RFB server.
        novnc_port: TCP port of the noVNC web server.
        vnc_password_file: a ``vncpasswd`` file, or None for no RFB authentication.
    """

    display: str
    width: int
    height: int
    depth: int
    vnc_port: int
    novnc_port: int
    vnc_password_file: str | None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "DesktopSettings":
        """Read and check the settings.

        Raises:
            SettingsError: a value is malformed.
        """
        display = environment.get("DISPLAY") or ":0"
        if not re.fullmatch(r":\d{1,4}", display):
            raise SettingsError(f"DISPLAY must look like :0, not {display!r}")
        # The reference image also takes 1280x720x24.
        geometry = re.fullmatch(
            r"(\d{2,5})x(\d{2,5})(?:x(\d+))?", environment.get("DESKTOP_GEOMETRY") or "1280x720"
        )
        if geometry is None:
            raise SettingsError("DESKTOP_GEOMETRY must be WIDTHxHEIGHT in pixels, such as 1280x720")
        depth = environment.get("DESKTOP_DEPTH") or geometry[3] or "24"
        if depth not in ("16", "24"):
            raise SettingsError(f"DESKTOP_DEPTH must be 16 or 24, not {depth!r}")
        return cls(
            display=display,
            width=int(geometry[1]),
            height=int(geometry[2]),
            depth=int(depth),
            vnc_port=_port(environment, "VNC_PORT", 5900),
            novnc_port=_port(environment, "NOVNC_PORT", 6080),
            vnc_password_file=environment.get("DESKTOP_VNC_PASSWORD_FILE") or None,
        )


def _port(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name) or str(default)
    if not value.isascii() or not value.isdigit() or not 0 < int(value) < 65536:
        raise SettingsError(f"{name} must be a TCP port, not {value!r}")
    return int(value)
