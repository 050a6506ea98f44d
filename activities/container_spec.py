"""What a sandbox container is made from: protocol section 8.2, and the defaults of design section 6.

Everything here is data; `containers` hands it to Docker.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from activities.failures import failure
from activities.hostfiles import EnvironmentFiles
from models.errors import ErrorCode
from models.identifiers import LABEL_ENVIRONMENT, LABEL_GENERATION, LABEL_HOST, LABEL_INSTALLATION
from models.messages import EnvironmentSpec, Limits, SecurityProfile

RFB_PORT = 5900
NOVNC_PORT = 6080
NODE_HOME = "/var/lib/tyrum-node"
TOKEN_PATH = "/run/tyrum/gateway-token"  # noqa: S105  # a path, no secret
VNC_PASSWORD_PATH = "/run/tyrum/vnc-password"  # noqa: S105  # a path, no secret
GATEWAY_HOST = "host.containers.internal"

SANDBOX_USER = "1000:1000"
"""Who runs a hardened container whose image names no user."""

SCRATCH = {
    # A desktop's programs build and run things in /tmp.
    "/tmp": "rw,nosuid,nodev,exec,mode=1777,size=1g",  # noqa: S108  # a path in the container
    "/run": "rw,nosuid,nodev,noexec,mode=1777,size=64m",
    "/var/tmp": "rw,nosuid,nodev,noexec,mode=1777,size=256m",  # noqa: S108  # a path in the container
}
"""What stays writable, in memory, where the root file system does not; it counts towards the memory limit."""

NETWORK_OPTIONS = {"com.docker.network.bridge.enable_icc": "false"}
"""Of the sandboxes' network: no traffic between its containers."""

LOG_LIMITS = {"max-size": "10m", "max-file": "2"}
"""Rotation of Docker's json-file log."""

_SELINUX_ENFORCE = Path("/sys/fs/selinux/enforce")


@dataclass(frozen=True)
class HostConfig:
    """What a runtime host is configured with (`models.settings.HostSettings`).

    Attributes:
        state_dir: below it are the environments' directories.
        gateway_url: origin of the node listener as this host reaches it; empty to derive it from
        `gateway_ws_url`. gateway_ws_url: the gateway's `/ws` as containers reach it.
        network: Docker network of the sandboxes.
        installation: whose environments these are, such as the id of the Temporal namespace; empty where
        unknown. docker_host: the engine's address; None for Docker's own variables and default.
        pairing_seconds: the longest a container may take until it is proven ready.
        max_limits: the most one environment may have; None for no maxima.
    """

    host_id: str
    state_dir: Path
    gateway_ws_url: str
    gateway_url: str = ""
    host_label: str = ""
    takeover_origin: str = "http://127.0.0.1"
    network: str = "desktop-environments"
    installation: str = ""
    docker_host: str | None = None
    pairing_seconds: float = 60
    max_limits: Limits | None = None


@dataclass(frozen=True)
class Plan:
    """The arguments of `APIClient.create_container`, and what the security profile could not hold."""

    arguments: dict[str, Any]
    host_arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def labels(config: HostConfig, spec: EnvironmentSpec, generation: int) -> dict[str, str]:
    """Docker labels of the container (protocol section 8.2, design decision 7)."""
    marked = {
        LABEL_ENVIRONMENT: spec.environment_id,
        LABEL_HOST: config.host_id,
        LABEL_GENERATION: str(generation),
    }
    if config.installation:
        marked[LABEL_INSTALLATION] = config.installation
    return marked


def environment_variables(config: HostConfig, spec: EnvironmentSpec) -> dict[str, str]:
    """The container's environment: protocol section 8.2, and where our own image finds its VNC password."""
    return {
        "TYRUM_HOME": NODE_HOME,
        "TYRUM_GATEWAY_TOKEN_PATH": TOKEN_PATH,
        "TYRUM_GATEWAY_WS_URL": config.gateway_ws_url,
        "TYRUM_NODE_LABEL": spec.label or f"desktop-environment:{spec.environment_id}",
        "TYRUM_NODE_MODE": "desktop-sandbox",
        "TYRUM_BROWSER_ENABLED": "1",
        "TYRUM_FS_SANDBOX_ROOT": NODE_HOME,
        "TYRUM_FS_BASH_ENABLED": "1",
        "DESKTOP_VNC_PASSWORD_FILE": VNC_PASSWORD_PATH,
    }


def container_user(spec: EnvironmentSpec, image_user: str) -> str:
    """Who the container runs as, in Docker's spelling; empty for the image's root.

    Args:
        image_user: the user the image is configured for, empty for root.
    """
    if image_user or spec.security_profile is not SecurityProfile.HARDENED:
        return image_user
    # Without root the host cannot give the files to another user: the container runs as who owns them.
    return SANDBOX_USER if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}"


def plan(
    config: HostConfig,
    spec: EnvironmentSpec,
    generation: int,
    files: EnvironmentFiles,
    user: str,
    ids: tuple[int, int],
    *,
    image_names_user: bool,
) -> Plan:
    """Everything the container is made from.

    Args:
        user: what `container_user` said. ids: the numbers behind it.

    Raises:
        ApplicationError: `start_failed`, the limits are above this host's maxima.
    """
    _refuse_above(config.max_limits, spec, generation)
    notes: list[str] = []
    host = _common(config, spec, files)
    if spec.security_profile is SecurityProfile.HARDENED:
        if not image_names_user:
            notes.append(f"the image names no user; it runs as {user}")
        # runc gives a tmpfs the mode of the directory it covers, which for /run lets only its owner write.
        owner = f",uid={ids[0]},gid={ids[1]}"
        scratch = {path: options + owner for path, options in SCRATCH.items()}
        host.update(cap_drop=["ALL"], read_only=True, tmpfs=scratch)
    else:
        host.update(cap_drop=["NET_RAW"])
        notes.append("security profile compatible: root file system writable, Docker's default capabilities")
        if not user:
            notes.append("security profile compatible: the image runs as root inside the container")
    arguments: dict[str, Any] = {
        "image": spec.image_ref,
        "user": user or None,
        "detach": True,
        "environment": environment_variables(config, spec),
        "labels": labels(config, spec, generation),
        "ports": [RFB_PORT, NOVNC_PORT],
    }
    return Plan(arguments, host, notes)


def refuse_open_network(found: list[dict[str, Any]]) -> None:
    """Refuse a network made by somebody else, on which sandboxes would reach each other.

    Args:
        found: the networks of the configured name, as Docker lists them.

    Raises:
        ApplicationError: `start_failed`.
    """
    for network in found:
        options = network.get("Options") or {}
        if network.get("Driver") != "bridge" or NETWORK_OPTIONS.items() - options.items():
            message = (
                f"Docker network {network['Name']} lets containers reach each other: remove it, so that it is "
                "made anew without, or set DESKTOP_NETWORK to another name"
            )
            raise failure(ErrorCode.START_FAILED, message, phase="start_container", lasting=True)


def selinux_enforcing() -> bool:
    """Whether this host enforces SELinux, so that mounts need a label of their own."""
    try:
        return _SELINUX_ENFORCE.read_text().strip() == "1"
    except OSError:
        return False


def _refuse_above(most: Limits | None, spec: EnvironmentSpec, generation: int) -> None:
    """The API has refused it already, unless the maxima were lowered since or somebody went round the API."""
    beyond = None if most is None else spec.limits.above(most)
    if beyond is not None:
        raise failure(
            ErrorCode.START_FAILED,
            f"limits: {beyond} of this host; change the environment's limits",
            phase="start_container",
            generation=generation,
            lasting=True,
        )


def _common(config: HostConfig, spec: EnvironmentSpec, files: EnvironmentFiles) -> dict[str, Any]:
    relabel = ",Z" if selinux_enforcing() else ""
    limits = spec.limits
    memory = limits.memory_mb * 1024 * 1024
    return {
        "binds": [
            f"{files.runtime_home}:{NODE_HOME}:rw{relabel}",
            f"{files.identity}:{NODE_HOME}/desktop-node/device-identity.json:ro{relabel}",
            f"{files.token}:{TOKEN_PATH}:ro{relabel}",
            f"{files.vnc_password}:{VNC_PASSWORD_PATH}:ro{relabel}",
        ],
        "extra_hosts": {GATEWAY_HOST: "host-gateway"},
        "port_bindings": {RFB_PORT: ("127.0.0.1",), NOVNC_PORT: ("127.0.0.1",)},
        "network_mode": config.network,
        "security_opt": ["no-new-privileges:true"],
        "pids_limit": limits.pids,
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(limits.cpus * 1_000_000_000),
        "shm_size": limits.shm_mb * 1024 * 1024,
        "init": True,
        "ipc_mode": "private",
        "log_config": {"Type": "json-file", "Config": LOG_LIMITS},
        "restart_policy": {"Name": "no"},
    }
