"""The node's configuration, by the environment variables of node-protocol.md section 8.2.

``TYRUM_BROWSER_ENABLED``, ``TYRUM_FS_SANDBOX_ROOT`` and ``TYRUM_FS_BASH_ENABLED`` are not read: this node has
neither a browser nor file access to offer.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

_DEFAULT_GATEWAY = "ws://127.0.0.1:8788/ws"
_DEFAULT_LABEL = "tyrum-desktop-sandbox"
_TOKEN_SECONDS = 60.0
_TOKEN_POLL_SECONDS = 0.02


class ConfigurationError(Exception):
    """The node cannot start with this configuration; the message says why and never holds a secret."""


@dataclass(frozen=True)
class NodeConfig:
    """Where the gateway is and what the node calls itself.

    Attributes:
        gateway_url: ``ws://`` or ``wss://`` URL.
        token_path: file with the bearer token, or None to connect without one.
        home: directory of the node's state.
        label: sent as ``device.label``.
        mode: sent as ``device.mode``; None sends none.
        display: X display name the desktop tasks act on.
    """

    gateway_url: str
    token_path: str | None
    home: str
    label: str
    mode: str | None
    display: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "NodeConfig":
        """Read the variables; blank ones count as absent.

        Raises:
            ConfigurationError: the gateway URL is not a WebSocket URL.
        """
        values = {name: value.strip() for name, value in environment.items() if value.strip()}
        url = values.get("TYRUM_GATEWAY_WS_URL", _DEFAULT_GATEWAY)
        if not url.startswith(("ws://", "wss://")):
            raise ConfigurationError("TYRUM_GATEWAY_WS_URL must start with ws:// or wss://")
        return cls(
            gateway_url=url,
            token_path=values.get("TYRUM_GATEWAY_TOKEN_PATH"),
            home=values.get("TYRUM_HOME") or os.path.expanduser("~/.tyrum"),
            label=values.get("TYRUM_NODE_LABEL", _DEFAULT_LABEL),
            mode=values.get("TYRUM_NODE_MODE"),
            display=values.get("DISPLAY", ":0"),
        )


def read_token(path: str, patience: float = _TOKEN_SECONDS) -> str:
    """The trimmed token in `path`, waiting up to `patience` seconds for a non-empty file (section 8.3).

    Raises:
        ConfigurationError: the file cannot be read, is not text, or stayed absent or empty.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            with open(path, encoding="utf-8") as file:
                token = file.read().strip()
        except FileNotFoundError:
            token = ""
        except OSError as error:
            raise ConfigurationError(f"cannot read the gateway token at {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            # The original error would carry bytes of the token into a log.
            raise ConfigurationError(f"the gateway token at {path} is not UTF-8 text") from None
        if token:
            return token
        if time.monotonic() >= deadline:
            raise ConfigurationError(f"no gateway token at {path} after {patience:.0f} s")
        time.sleep(_TOKEN_POLL_SECONDS)
