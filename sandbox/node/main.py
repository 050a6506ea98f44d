"""The node as a process."""

import asyncio
import signal
import sys

from sandbox.log import log
from sandbox.node.client import GatewayClient
from sandbox.node.config import ConfigurationError, NodeConfig, read_token
from sandbox.node.desktop import Desktop
from sandbox.node.identity import IdentityError, load_or_create

_EXIT_CONFIGURATION = 2


def main() -> int:
    """Run until SIGTERM; the exit code is 0 then, 13 when the gateway refused it, 2 when misconfigured."""
    try:
        config = NodeConfig.from_environment()
        identity = load_or_create(config.home)
        token = read_token(config.token_path) if config.token_path else None
    except (ConfigurationError, IdentityError) as error:
        log("node", str(error))
        return _EXIT_CONFIGURATION
    log("node", f"connecting to {config.gateway_url.partition('?')[0]} as {identity.device_id}")
    return asyncio.run(_run(GatewayClient(config, identity, token, Desktop(config.display))))


async def _run(client: GatewayClient) -> int:
    serving = asyncio.create_task(client.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    try:
        return await serving
    except asyncio.CancelledError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
