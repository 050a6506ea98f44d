"""Every part of the control plane killed while environments are in every moment of their lives (issue 3, point 5).

The long form, with random moments and hundreds of kills, is `make bench-recovery`.
"""

import time
from datetime import UTC, datetime

import httpx
import pytest

from scripts.rfb import handshake
from tests.chaos.invariants import converge, no_failed_tasks
from tests.chaos.load import Load
from tests.chaos.moments import AT_LEAST, Fan, prepare, strike
from tests.chaos.plane import COMPONENTS, Plane

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("chaos")]

DOWN_SECONDS = 0.3
"""Between the kill and the restart: about what a supervisor waits."""


class Kept:
    """The fan of environments handed from test to test, so that each needs not make its own."""

    fan: Fan | None = None


@pytest.mark.parametrize("names", [*((name,) for name in COMPONENTS), COMPONENTS], ids="+".join)
def test_a_kill_in_every_moment(plane: Plane, names: tuple[str, ...]) -> None:
    Kept.fan = fan = prepare(plane, Kept.fan)
    session = plane.operator.http.post(f"/desktop-environments/{fan.idle}/takeover-token").json()
    link = session["entry_url"].split("?")[0].removesuffix("/vnc.html")
    load = Load(plane.operator, seed=1, environments=1, deletes=False)
    try:
        load.resume()
        began = datetime.now(UTC)

        def kill() -> None:
            nonlocal began
            began = datetime.now(UTC)
            for name in names:
                plane.processes.kill(name)
            time.sleep(DOWN_SECONDS)
            for name in names:
                plane.processes.start(name)

        doing = strike(plane, fan, kill)
        plane.until(
            lambda: all(plane.serves(name, began) for name in names), f"{', '.join(names)} serves again", 120
        )
        serves = (datetime.now(UTC) - began).total_seconds()
        load.pause()
        converge(plane)
        agrees = (datetime.now(UTC) - began).total_seconds()
    finally:
        load.close()
    print(
        f"{', '.join(names)} killed: serves after {serves:.1f} s, all agrees after {agrees:.1f} s; hit: {doing}"
    )
    assert len(doing) >= AT_LEAST, doing
    no_failed_tasks(plane)
    [container] = [c for c in plane.watch.containers() if c["environment_id"] == fan.idle]
    assert (container["id"], container["generation"]) == (fan.container, 1)
    assert httpx.get(session["entry_url"], trust_env=False, follow_redirects=True).status_code == 200
    assert handshake(link.replace("http", "ws", 1) + "/websockify", timeout=10).width > 0
