"""What every worker process does at its beginning and its end."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

from temporalio.client import Client
from temporalio.envconfig import ClientConfig
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.worker import Worker

from models import keyring
from models.settings import ConfigurationError, Settings
from workflows.plugin import ControlPlanePlugin

log = logging.getLogger(__name__)

CONNECT_RETRY_SECONDS = 0.5
"""A worker may come up before the Temporal server does."""


def configure_logging(level: str) -> None:
    """One line per event on stderr, at `level`."""
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for noisy in ("httpx", "httpcore", "urllib3", "docker"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


async def connect(settings: Settings) -> Client:
    """A client by Temporal's own environment variables; waits until the server answers.

    Raises:
        ConfigurationError: the key ring cannot be read.
    """
    plugin = ControlPlanePlugin(keyring.configured(settings.codec_keys_file))
    Runtime.set_default(
        Runtime(
            telemetry=TelemetryConfig(
                logging=LoggingConfig(TelemetryFilter(core_level="ERROR", other_level="ERROR"))
            )
        ),
        error_if_already_set=False,
    )
    config = ClientConfig.load_client_connect_config()
    config.setdefault("target_host", "localhost:7233")
    warned = False
    while True:
        try:
            return await Client.connect(plugins=[plugin], **config)
        except RuntimeError as error:
            if not warned:
                log.warning("waiting for Temporal at %s: %s", config.get("target_host"), error)
                warned = True
            await asyncio.sleep(CONNECT_RETRY_SECONDS)


@contextlib.asynccontextmanager
async def stop_event() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    try:
        yield event
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def run_until_stopped(worker: Worker, ready: str) -> None:
    """Run a worker until SIGTERM or SIGINT, then drain it."""
    async with stop_event() as stop:
        async with worker:
            log.info("%s", ready)
            await stop.wait()
            log.info("stopping: taking no new work, finishing what runs")
        log.info("stopped")


def main(run: Callable[[], Awaitable[None]]) -> None:
    """Run a worker process: bad configuration is one line and exit code 2."""
    try:
        asyncio.run(_as_coroutine(run))
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    # The SDK's native threads can abort the interpreter while it finalises (temporal sdk-python issue 300).
    sys.stdout.flush()
    sys.stderr.flush()
    logging.shutdown()
    os._exit(0)


async def _as_coroutine(run: Callable[[], Awaitable[None]]) -> None:
    await run()
