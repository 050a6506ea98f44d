"""The address under which sandboxes reach this machine: the gateway of Docker's default bridge (`host-gateway`)."""

import fcntl
import logging
import socket
import struct
from ipaddress import ip_network

import docker
from docker.errors import DockerException
from requests.exceptions import RequestException

DOCKER_SECONDS = 5

_USUAL_INTERFACE = "docker0"
_SIOCGIFADDR = 0x8915

logger = logging.getLogger(__name__)


def bridge_address() -> str | None:
    """An IPv4 address of this machine that a server can listen on; None where there is no bridge.

    Asks the engine, and looks at the bridge's own interface where the engine does not answer.
    """
    interface, address = _USUAL_INTERFACE, None
    try:
        client = docker.from_env(timeout=DOCKER_SECONDS)
        try:
            bridge = client.networks.get("bridge").attrs
        finally:
            client.close()
        interface = (bridge.get("Options") or {}).get("com.docker.network.bridge.name", interface)
        address = _gateway(bridge)
    except (DockerException, RequestException, OSError, KeyError, ValueError, IndexError) as error:
        logger.info("Docker does not tell the bridge's address: %s", str(error).split("\n", 1)[0][:200])
    return address or _interface_address(interface)


def _gateway(bridge: dict[str, object]) -> str | None:
    ipam = bridge.get("IPAM")
    for pool in (ipam.get("Config") if isinstance(ipam, dict) else None) or []:
        # Some engines leave the gateway out of a bridge they found in place: the first address then.
        address = str(pool.get("Gateway") or ip_network(pool["Subnet"])[1])
        if _is_own(address):
            return address
    return None


def _is_own(address: str) -> bool:
    """Whether a server could listen there: a remote engine's bridge is not this machine's."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _interface_address(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("256s", interface.encode()[:15])
        try:
            answer = fcntl.ioctl(control.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
