"""Debian's Chromium, driven by Playwright, looking at a desktop through noVNC's page."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

from scripts import chromium, pixels

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CONNECTED = ":root.noVNC_connected"
ASKS_FOR_PASSWORD = "#noVNC_credentials_dlg.noVNC_open"
_DISCONNECTED = ":root:not(.noVNC_connected)"
_PICTURE = "document.querySelector('#noVNC_container canvas').toDataURL('image/png')"
CONNECT_SECONDS = 60
_NETWORK_CHANGED = "ERR_NETWORK_CHANGED"
_ATTEMPTS = 5
_CANVAS = "#noVNC_container canvas"


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser for as long as the context lasts."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium.program(), headless=True, args=ARGUMENTS
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Viewer:
    """One tab with noVNC's page.

    Attributes:
        complaints: what the browser's console reports as errors.
        network_changed: Chromium dropped requests, because an interface came or went, as with any container here.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    network_changed: bool = False

    @classmethod
    def open(cls, browser: Browser, url: str, until: str = CONNECTED) -> "Viewer":
        """Open the page and wait until it shows a desktop; again where a network's coming and going prevents it.

        Args:
            until: selector of what is to appear.
        """
        # Larger than the desktop: noVNC shows the whole of it, unscaled.
        page = browser.new_context(viewport={"width": 1400, "height": 860}).new_page()
        viewer = cls(page)
        page.on("console", viewer._hear)
        page.on("pageerror", lambda error: viewer.complaints.append(str(error)))
        for _ in range(_ATTEMPTS):
            try:
                page.goto(url)
                page.wait_for_selector(until, state="attached", timeout=CONNECT_SECONDS * 1000)
            except Error as error:
                viewer.network_changed |= _NETWORK_CHANGED in error.message
            else:
                return viewer
            if not viewer.network_changed:
                break
            viewer.network_changed = False
        said = page.locator("#noVNC_status").text_content(timeout=1000)
        raise AssertionError(f"noVNC does not connect: {said!r}, {viewer.complaints}")

    def picture(self) -> pixels.Picture:
        """What the page shows."""
        data_url: str = self.page.evaluate(_PICTURE)
        return pixels.decode(base64.b64decode(data_url.partition(",")[2]))

    def click(self, x: int, y: int, button: str = "left") -> None:
        """Click a place on the desktop."""
        box = self.page.locator(_CANVAS).bounding_box()
        assert box is not None
        if button == "right":
            self.page.mouse.click(box["x"] + x, box["y"] + y, button="right")
        else:
            self.page.mouse.click(box["x"] + x, box["y"] + y)

    def type(self, text: str) -> None:
        """Type, as somebody at this keyboard would."""
        self.page.keyboard.type(text, delay=5)

    @property
    def connected(self) -> bool:
        """Whether noVNC says so."""
        return self.page.locator(CONNECTED).count() == 1

    def wait_until_disconnected(self, seconds: float) -> None:
        """Return when noVNC says that the desktop is gone."""
        self.page.wait_for_selector(_DISCONNECTED, state="attached", timeout=seconds * 1000)

    def insist_on_input(self) -> None:
        """Have noVNC send input although the session is for looking: a viewer that does not keep to it."""
        self.page.evaluate(
            "async () => { const ui = (await import(new URL('app/ui.js', location.href))).default;"
            " ui.rfb.viewOnly = false; ui.rfb.focus(); }"
        )

    def _hear(self, message: ConsoleMessage) -> None:
        # noVNC looks for its version in a file that is none of its pages (protocol section 12.24).
        if _NETWORK_CHANGED in message.text:
            self.network_changed = True
        elif message.type == "error" and "404" not in message.text:
            self.complaints.append(message.text)
