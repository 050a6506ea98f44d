"""Commands in every phase of a start, and storms of them, at the real stack (issue 3, points 1 and 8)."""

import contextlib
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.trouble.field import Field, within
from tests.trouble.images import BOOT, Images, awaiting, give

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("trouble")]

HELD = {
    "image looked up": r"GET \S+/images/\S+/json",
    "container being made": r"POST \S+/containers/create",
    "container being started": r"POST \S+/containers/\w+/start",
}
"""Requests to the engine that a start waits for."""

MANY = 12
"""More than the ten upgrades a minute that a gateway with one limit for all of a host's sandboxes allows."""

EXPECTED = {"stop": "stopped", "reset": "running", "start": "running"}


@pytest.fixture(scope="session")
def slow_image(bad_images: Images) -> str:
    """Its node and its VNC server come up when they are told to."""
    return bad_images.variant(f"{awaiting('go')}; exec {BOOT}")


@contextmanager
def held_starts(field: Field, phase: str, slow_image: str, count: int) -> Iterator[list[str]]:
    """So many environments whose starts are in this phase; they may go on when the context ends."""
    if phase in HELD:
        with field.relay.holding(HELD[phase], answer=phase.startswith("image")) as hold:
            made = field.many(count)
            within(lambda: hold.came >= count, phase)
            yield made
    else:
        made = field.many(count, image_ref=slow_image)
        for environment_id in made:
            field.until(environment_id, phase="await_node_pairing")
        yield made


@pytest.mark.parametrize("phase", [*HELD, "node awaited"])
def test_every_command_in_every_phase_of_a_start(field: Field, phase: str, slow_image: str) -> None:
    commands = ["stop", "reset", "delete", "start"]
    with held_starts(field, phase, slow_image, len(commands)) as made:
        for environment_id, command in zip(made, commands, strict=True):
            field.command(environment_id, command)
        time.sleep(0.15)

    def outcome(environment_id: str, command: str) -> None:
        if command == "delete":
            field.delete(environment_id)
            return
        # `start` asks for what is wanted already: sent again, it only waits.
        settled = field.settle(environment_id, "stop" if command == "stop" else "start")
        assert settled["status"] == EXPECTED[command], settled
        seen = field.check_agreement(environment_id, EXPECTED[command])
        assert seen["last_error"] is None and seen["restarts"] == 0
        assert field.errors(environment_id) == []
        if command == "start":
            assert seen["generation"] == 1

    with ThreadPoolExecutor(len(commands)) as pool:
        outcomes = [pool.submit(outcome, *each) for each in zip(made, commands, strict=True)]
        while wait(outcomes, timeout=0.2).not_done:
            for environment_id in made if phase not in HELD else []:
                give("go", field.engine, environment_id)
    for each in outcomes:
        each.result()


def test_start_while_it_stops(field: Field) -> None:
    environment_id = field.running()
    with field.relay.holding(r"POST \S+/containers/\w+/stop") as hold:
        field.command(environment_id, "stop")
        within(lambda: hold.came, "the stop")
        field.command(environment_id, "start")
        assert field.show(environment_id)["status"] == "stopping"
    field.until(environment_id, generation=2)
    assert field.settle(environment_id, "start")["status"] == "running"
    field.check_agreement(environment_id, "running")
    assert field.errors(environment_id) == []


def test_twenty_commands_in_a_row(field: Field) -> None:
    def storm(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311  # a repeatable storm, no secret
        environment_id = field.create()
        last = "start"
        for _ in range(20):
            command = chance.choice(["start", "stop", "reset"])
            last = command if command != "reset" else last
            field.command(environment_id, command)
            assert len(field.stack.containers(environment_id)) <= 1
            time.sleep(chance.choice([0, 0, 0.02, 0.1, 0.4]))
        status = field.settle(environment_id, last)["status"]
        assert status == EXPECTED[last]
        field.check_agreement(environment_id, status)
        assert field.errors(environment_id) == []

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(storm, [1, 2, 3]))


def test_creates_and_deletes_racing(field: Field) -> None:
    """A reconciler that polls leaked 91 of 200 containers here."""
    chance = random.Random(7)  # noqa: S311  # repeatable, no secret
    pauses = [chance.uniform(0, 1.2) for _ in range(20)]

    def life(pause: float) -> str:
        environment_id = field.create()
        time.sleep(pause)
        field.command(environment_id, "delete", wait=60)
        return environment_id

    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(life, pauses))
    for environment_id in made:
        field.check_nothing_left(environment_id)


def test_delete_leaves_nothing(field: Field) -> None:
    environment_id = field.running()
    token = field.token(environment_id)
    session = field.stack.call("POST", f"/desktop-environments/{environment_id}/takeover-token").json()
    link = session["entry_url"].split("?")[0].removesuffix("/vnc.html").replace("http", "ws", 1)
    with connect(f"{link}/websockify", subprotocols=[Subprotocol("binary")], proxy=None) as takeover:
        assert takeover.recv(timeout=10)
        field.command(environment_id, "delete", wait=60)
        drain(takeover)
    field.check_nothing_left(environment_id)
    # A deleted environment's node came back with its old token here.
    assert field.refused(token) == 4001
    assert field.stack.http.get(session["entry_url"]).status_code == 404


def drain(socket: ClientConnection) -> None:
    """Read until the other end closes."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            socket.recv(timeout=10)


def test_many_created_at_once_all_pair(field: Field) -> None:
    began = time.monotonic()
    made = field.many(MANY)
    with ThreadPoolExecutor(MANY) as pool:
        settled = list(pool.map(lambda environment_id: field.settle(environment_id, "start"), made))
    print(f"{MANY} at once: all running after {time.monotonic() - began:.1f} s")
    assert {environment["status"] for environment in settled} == {"running"}
    for environment_id in made:
        field.check_agreement(environment_id, "running")
