"""What an operator decides about an environment's node shows where he looks for it: detail, timeline, command line."""

from datetime import UTC, datetime
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from cli import render
from inventory import pairings
from inventory.engine import writing
from inventory.nodes import ProvenNode, record_connection
from models.capabilities import DESKTOP, Descriptor
from models.wire import Device
from tests.api.stack import Stack
from tests.gateway.harness import DESKTOP as ALLOWED


def paired(stack: Stack, environment_id: str, node_id: str) -> int:
    """The environment's node as the gateway records it when it connects; its pairing's id."""
    proven = ProvenNode(
        node_id=node_id,
        device=Device(device_id=node_id, pubkey="key"),
        capabilities=tuple(Descriptor(id=name, version="1.0.0") for name in DESKTOP),
        connection_id="connection",
        remote_ip="192.0.2.8",
        environment_id=environment_id,
        generation=1,
    )
    now = datetime.now(UTC)
    with writing(stack.engine) as session:
        record_connection(session, proven, now)
        return pairings.record_connection(session, proven, now).pairing.pairing_id


async def test_a_decision_shows_in_detail_and_timeline(stack: Stack) -> None:
    environment_id = await stack.started()
    path = f"/desktop-environments/{environment_id}"

    async def shown() -> Any:
        return (await stack.http.get(path)).json()["environment"]

    before = await shown()
    assert before["node_id"] and before["pairing"] is None
    pairing_id = paired(stack, environment_id, before["node_id"])
    assert (await shown())["pairing"] == {
        "pairing_id": pairing_id,
        "status": "approved",
        "decided_by": "managed-pairing-policy",
        "reason": "live managed token of generation 1",
        "at": (await shown())["pairing"]["at"],
    }
    body = {"reason": "it clicks on its own"}
    assert (await stack.http.post(f"/pairings/{pairing_id}/revoke", json=body)).is_success
    revoked = (await shown())["pairing"]
    assert (revoked["status"], revoked["decided_by"], revoked["reason"]) == (
        "revoked",
        "admin",
        "it clicks on its own",
    )
    approval = {"trust_level": "local", "capability_allowlist": ALLOWED[:1], "reason": "looked at"}
    assert (await stack.http.post(f"/pairings/{pairing_id}/approve", json=approval)).is_success
    assert (await shown())["pairing"]["status"] == "approved"
    entries = (await stack.http.get(f"{path}/timeline")).json()["entries"]
    decisions = [
        (e["name"], e["actor"], e["generation"], e["detail"]["status"], e["detail"]["reason"])
        for e in entries
        if e["kind"] == "pairing"
    ]
    assert decisions == [
        ("revoke", "admin", 1, "revoked", "it clicks on its own"),
        ("approve", "admin", 1, "approved", "looked at"),
    ]


async def test_the_document_tells(stack: Stack) -> None:
    shown = stack.app.openapi()["components"]["schemas"]["EnvironmentShown"]
    assert "pairing" in shown["required"]


@pytest.mark.parametrize(
    ("pairing", "shown"),
    [
        (None, "-"),
        (
            {"pairing_id": 7, "status": "approved", "decided_by": "managed-pairing-policy"},
            "approved (pairing 7)",
        ),
        (
            {"pairing_id": 7, "status": "revoked", "decided_by": "ann", "reason": "odd\x1b[2J"},
            "revoked (pairing 7) by ann: odd",
        ),
    ],
)
def test_desktopctl_shows_it(pairing: Any, shown: str) -> None:
    console = Console(file=StringIO(), width=200, force_terminal=False)
    console.print(render.environment({"pairing": pairing}))
    assert isinstance(console.file, StringIO)
    line = next(line for line in console.file.getvalue().splitlines() if line.startswith("pairing"))
    assert line.removeprefix("pairing").strip().startswith(shown) and "\x1b" not in line
