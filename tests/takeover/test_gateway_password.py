"""The gateway knows a desktop's VNC password while its node is connected, and tells it for that generation only."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from api.takeover.upstream import password_of
from models import tokens
from tests.gateway.harness import Identity, Stack, new_engine, serving


@pytest.fixture
async def gateway_stack(tmp_path: Path) -> AsyncIterator[Stack]:
    engine = new_engine(tmp_path)
    async with serving(engine) as stack:
        yield stack
    engine.dispose()


async def test_known_while_connected(gateway_stack: Stack) -> None:
    stack = gateway_stack
    identity, environment_id = Identity(), stack.environment()
    token = stack.token(environment_id, identity)
    node_id = identity.device_id
    assert password_of(stack.gateway, node_id, environment_id, 1) is None
    async with stack.node(token, identity):
        await stack.connected(node_id)
        password = password_of(stack.gateway, node_id, environment_id, 1)
        assert password == tokens.vnc_password(token)
        assert password_of(stack.gateway, node_id, environment_id, 2) is None
        assert password_of(stack.gateway, node_id, stack.environment(), 1) is None
        assert password_of(stack.gateway, None, environment_id, 1) is None
        connection = stack.gateway.connection(node_id)
        assert connection is not None and password not in repr(connection.claims)
    await stack.disconnected(node_id)
    assert password_of(stack.gateway, node_id, environment_id, 1) is None


async def test_a_node_without_a_managed_token_has_none(gateway_stack: Stack) -> None:
    identity = Identity()
    async with gateway_stack.node(identity=identity):
        await gateway_stack.connected(identity.device_id)
        connection = gateway_stack.gateway.connection(identity.device_id)
        assert connection is not None and connection.vnc_password is None
