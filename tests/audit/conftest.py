"""The admin API's stack, both databases, and a gateway whose admin routes are audited."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import httpx
import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware

from api import errors
from api.audit import Audit
from api.credentials import AdminCredentials
from api.dependencies import Services
from api.gateway import Limits
from api.guard import Guard
from api.routers import nodes
from api.temporal import Workflows
from models.settings import ApiSettings
from tests.api.conftest import stack, temporal
from tests.api.stack import fresh_inventory
from tests.gateway.harness import ADMIN_TOKEN, serving
from tests.gateway.harness import Stack as GatewayStack
from tests.inventory.conftest import empty_engine, empty_url, engine, now, postgres_url

__all__ = ["empty_engine", "empty_url", "engine", "now", "postgres_url", "stack", "temporal"]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayStack]:
    """A gateway over a migrated SQLite inventory, operated through the audit."""
    inventory = fresh_inventory(tmp_path)
    limits = Limits(reconnect_grace=0.1, revocation_interval=0.05, handshake_timeout=10)
    try:
        async with serving(inventory, limits=limits) as made:
            app = FastAPI(
                middleware=[
                    Middleware(Audit, engine=inventory),
                    Middleware(errors.ErrorBoundary),
                    Middleware(Guard),
                ]
            )
            app.state.services = Services(
                ApiSettings(admin_token=ADMIN_TOKEN),
                inventory,
                AdminCredentials(ADMIN_TOKEN, inventory),
                cast(Workflows, None),
                made.gateway,
            )
            errors.install(app)
            app.include_router(nodes.router)
            transport = httpx.ASGITransport(app, client=("192.0.2.9", 1))
            headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://admin", headers=headers, timeout=60
            ) as admin:
                yield replace(made, admin=admin)
    finally:
        inventory.dispose()
