"""Takeover in a real browser: the whole stack, the real image, Chromium (issue 4, point 5)."""

import base64
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from scripts import pixels
from tests.e2e.stack import Stack, running_stack
from tests.takeover.browser import ASKS_FOR_PASSWORD, Viewer, running_browser

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("e2e-takeover")]

TERMINAL = (400, 300)
BACKGROUND = (1200, 680)
INK = 300
"""Pixels that a typed line changes at least."""
ONE_CHARACTER = 40
"""Pixels; a character and the cursor behind it are smaller."""
LOSSY = 24
"""How far JPEG may take a colour from what it was."""
PATIENCE = 60.0


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("state")) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as running:
        yield running


class Desktop:
    """A running environment, seen by its own node."""

    def __init__(self, stack: Stack) -> None:
        environment = stack.create(label="browser")
        assert environment["status"] == "running", environment
        self._stack = stack
        self.environment_id = str(environment["environment_id"])
        self.path = f"/desktop-environments/{self.environment_id}"
        self._node_id = str(environment["node_id"])

    def screen(self) -> pixels.Picture:
        """A screenshot taken by the node, beside any viewer."""
        answer = self._stack.call(
            "POST",
            f"/nodes/{self._node_id}/dispatch",
            {"capability": "tyrum.desktop.screenshot", "args": {"display": "primary"}},
        )
        return pixels.decode(base64.b64decode(answer.json()["evidence"]["bytesBase64"]))

    def steady_screen(self) -> pixels.Picture:
        """A screenshot once two in a row are the same."""
        deadline = time.monotonic() + PATIENCE
        last = self.screen()
        while (now := self.screen()) != last:
            assert time.monotonic() < deadline, "the screen does not come to rest"
            last = now
        return now

    def changed(self, before: pixels.Picture, ink: int = INK) -> pixels.Picture:
        """The screen once it differs from `before` in that many pixels."""
        deadline = time.monotonic() + PATIENCE
        while pixels.difference(before, now := self.screen()).pixels < ink:
            assert time.monotonic() < deadline, "the screen does not change"
        return now

    def session(self, **body: Any) -> dict[str, Any]:
        """A new takeover session."""
        answer = self._stack.call("POST", f"{self.path}/takeover-token", body or None)
        assert answer.status_code == 200, answer.text
        session: dict[str, Any] = answer.json()
        return session


@pytest.fixture(scope="module")
def desktop(stack: Stack) -> Iterator[Desktop]:
    made = Desktop(stack)
    yield made
    stack.call("DELETE", made.path, wait=60)
    assert stack.containers(made.environment_id) == []


def alike(one: pixels.Picture, other: pixels.Picture) -> float:
    """Which part of a grid of points has the same colour in both, but for lossy encoding."""
    points = [(x, y) for x in range(8, 1280, 32) for y in range(8, 720, 24)]
    same = [
        max(abs(a - b) for a, b in zip(one.pixel(*point), other.pixel(*point), strict=True)) <= LOSSY
        for point in points
    ]
    return sum(same) / len(same)


def wait_until_alike(viewer: Viewer, screen: pixels.Picture) -> None:
    """Return when the page shows what is on the screen."""
    deadline = time.monotonic() + PATIENCE
    while (share := alike(viewer.picture(), screen)) < 0.97:
        assert time.monotonic() < deadline, f"the page shows something else: {share:.0%} alike"


def test_a_person_takes_over(stack: Stack, desktop: Desktop, browser: Browser) -> None:
    control = desktop.session()
    viewer = Viewer.open(browser, control["entry_url"])
    shown = viewer.picture()
    screen = desktop.steady_screen()
    assert (shown.width, shown.height) == (screen.width, screen.height) == (1280, 720)
    assert screen.pixel(*TERMINAL) != screen.pixel(*BACKGROUND)
    wait_until_alike(viewer, screen)

    viewer.click(*TERMINAL)
    clicked = desktop.steady_screen()
    viewer.type("echo typed in a browser\n")
    typed = desktop.changed(clicked)
    wait_until_alike(viewer, desktop.steady_screen())
    assert pixels.difference(clicked, typed).left < 700, "what changed is not in the terminal"
    assert viewer.complaints == []

    looking = desktop.session(view_only=True)
    onlooker = Viewer.open(browser, looking["entry_url"])
    wait_until_alike(onlooker, desktop.steady_screen())
    before = desktop.steady_screen()
    onlooker.insist_on_input()
    onlooker.click(*TERMINAL)
    onlooker.type("echo typed by an onlooker\n")
    onlooker.click(*BACKGROUND, button="right")
    # What is sent after it has arrived shows that what was sent before has not.
    viewer.type("#")
    desktop.changed(before, ink=5)
    new = pixels.difference(before, desktop.steady_screen())
    assert new.right - new.left < ONE_CHARACTER and new.bottom - new.top < ONE_CHARACTER, "input arrived"
    wait_until_alike(onlooker, desktop.steady_screen())
    assert onlooker.connected and onlooker.complaints == []

    path = f"{desktop.path}/takeover-sessions"
    listed = stack.call("GET", path).json()["sessions"]
    assert [entry["view_only"] for entry in listed] == [True, False]
    began = time.monotonic()
    assert stack.call("POST", f"{path}/{looking['session_id']}/revoke").status_code == 200
    onlooker.wait_until_disconnected(PATIENCE)
    print(f"revoked to disconnected: {(time.monotonic() - began) * 1000:.0f} ms")
    assert viewer.connected

    redirect = stack.call("GET", f"{desktop.path}/takeover")
    location = redirect.headers["location"]
    assert redirect.status_code == 307 and "#password=" in location
    direct = Viewer.open(browser, location)
    wait_until_alike(direct, desktop.steady_screen())

    began = time.monotonic()
    assert stack.call("POST", f"{desktop.path}/stop", {}).status_code == 202
    viewer.wait_until_disconnected(PATIENCE)
    print(f"stopped to disconnected: {(time.monotonic() - began) * 1000:.0f} ms")
    direct.wait_until_disconnected(PATIENCE)
    assert httpx.get(control["entry_url"], trust_env=False).status_code == 404


def test_the_password_keeps_others_out(stack: Stack, desktop: Desktop, browser: Browser) -> None:
    stack.settled(desktop.environment_id, "start")
    location = stack.call("GET", f"{desktop.path}/takeover").headers["location"]
    page, _, fragment = location.partition("#password=")
    assert len(fragment) == 8
    assert not Viewer.open(browser, page, until=ASKS_FOR_PASSWORD).connected
