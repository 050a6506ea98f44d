"""`make demo`: the main job, start to finish, on this machine: `python -m scripts.demo [--keep]`.

Starts the stack with `desktopctl up` in `var/demo`, creates an environment, drives it through its paired node, opens
it to a browser, stops, starts, resets and deletes it, and proves that nothing of it is left. Every step checks what
it claims; the first that does not hold ends the demonstration with exit code 1.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli import render, state, waiting
from cli.children import die_with
from cli.client import Json
from cli.commands.desktop import take
from cli.exits import CliError, ExitCode
from cli.logfiles import tail
from cli.session import Session, new_console
from cli.stack import child_environment, temporal_program
from models.identifiers import environment_workflow_id
from scripts import leftovers, pixels
from scripts.rfb import RfbError, handshake

CHECKOUT = Path(__file__).resolve().parent.parent
STATE_DIR = CHECKOUT / "var" / "demo"
PICTURES = CHECKOUT / "demo"

TYPED = "echo hello from the control plane"
INSIDE_THE_TERMINAL = {"x": 400, "y": 300}
BESIDE_THE_TERMINAL = (1200, 680)
ENOUGH_INK = 500
"""Pixels; the typed line and its echo are about five times that."""
PATIENCE = 120.0
"""Seconds for one operation; about a hundred times what it takes."""
SCREEN_PATIENCE = 15.0
TAIL_LINES = 25
_ANSWERED = "uvicorn.access"


class DemoFailed(Exception):
    """A step did not hold.

    Args:
        message: what, in one line. logs: names of the parts whose logs tell more.
    """

    def __init__(self, message: str, *logs: str) -> None:
        super().__init__(message)
        self.logs = logs or ("api", "control-worker", "host-worker")


class Story:
    """The steps, in order."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._number = 0
        self._starts: list[tuple[str, float, Json]] = []
        self.stack: subprocess.Popen[str] | None = None
        self.host_id: str | None = None
        self._environment: Json = {}
        self._node_id = ""

    def run(self) -> None:
        """All of it.

        Raises:
            DemoFailed, CliError, RfbError: a step did not hold.
        """
        self._start_stack()
        self._create()
        self._drive()
        self._take_over()
        self._stop_by_signal()
        self._start_again()
        self._reset()
        self._look_back()
        self._delete()
        self._summarise()

    @contextmanager
    def _step(self, title: str, *logs: str) -> Iterator[None]:
        self._number += 1
        at = time.monotonic() - self._began
        self._console.print(
            Text(f"\n{self._number}. {title}", style="bold"), Text(f"[{at:.1f} s]", style="dim")
        )
        started = time.monotonic()
        try:
            yield
        except CliError as error:
            raise DemoFailed(error.message, *logs) from None
        except (RfbError, pixels.NotAPicture, httpx.HTTPError, subprocess.SubprocessError, OSError) as error:
            raise DemoFailed(str(error), *logs) from None
        self._console.print(Text(f"   took {time.monotonic() - started:.2f} s", style="dim"))

    def _check(self, holds: object, claim: str, *logs: str) -> None:
        if not holds:
            raise DemoFailed(f"does not hold: {claim}", *logs)
        self._console.print(Text.assemble(("   ✓ ", "green"), claim), soft_wrap=True)

    def _start_stack(self) -> None:
        with self._step("Start the stack: desktopctl up", "temporal", "api", "control-worker", "host-worker"):
            clean_up()
            environment = {name: value for name, value in os.environ.items() if name != "DESKTOP_ADMIN_TOKEN"}
            environment["DESKTOP_STATE_DIR"] = str(STATE_DIR)
            environment.pop("DESKTOP_DATABASE_URL", None)
            parent = os.getpid()
            self.stack = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "up", "--json"],
                cwd=CHECKOUT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),  # noqa: PLW1509 - one thread, and it takes no lock
            )
            assert self.stack.stdout is not None
            line = self.stack.stdout.readline()
            if not line:
                raise DemoFailed("`desktopctl up` ended before it was ready; its own words are above")
            self._up = json.loads(line)
            for note in self._up["notes"]:
                self._say(f"note: {note}")
            self._check(self._up["ready"], "Temporal, API, control worker and host worker are ready")
            self.host_id = self._up["host_id"]
            self._session = Session(STATE_DIR, self._up["api_url"], out=self._console, err=self._console)
            self._api = self._session.api
        self._console.print(self._addresses())

    def _create(self) -> None:
        with self._step("Create an environment that is to run, and wait until it does"):
            began = time.monotonic()
            body = {"host_id": self._up["host_id"], "label": "demo", "desired_running": True}
            answer = self._api.call("POST", "/desktop-environments", about="new environment", body=body)
            environment_id = str(answer["environment"]["environment_id"])
            self._environment = answer["environment"]
            self._settle("running", lambda _: self._api.environment(environment_id))
            self._starts.append(("create", time.monotonic() - began, self._environment))
            self._node_id = str(self._environment["node_id"])
            self._check(self._environment["takeover_available"], "running, paired and open to takeover")

    def _drive(self) -> None:
        with self._step("Take a screenshot through the paired node", "api"):
            before = self._stable_screen()
            self._check(shows_terminal(before), "the desktop with its terminal window")
            self._say(f"demo/screenshot.png, {save(PICTURES / 'screenshot.png', before)}")
        with self._step("Type into the terminal window through the node", "api"):
            self._input("mouse", action="click", button="left", **INSIDE_THE_TERMINAL)
            clicked = self._stable_screen()
            self._input("keyboard", action="type", text=TYPED)
            self._input("keyboard", action="press", key="Enter")
            typed = self._stable_screen(unlike=clicked)
            new = pixels.difference(pixels.decode(clicked), pixels.decode(typed))
            self._check(
                new.pixels > ENOUGH_INK,
                f"the screen shows it: {new.pixels} new pixels, x {new.left}-{new.right}, y {new.top}-{new.bottom}",
            )
            self._say(f"demo/screenshot-typed.png, {save(PICTURES / 'screenshot-typed.png', typed)}")

    def _take_over(self) -> None:
        with self._step("Open a takeover session, as a browser would", "api"):
            path = f"/desktop-environments/{self._id}/takeover-token"
            entry = str(self._api.call("POST", path, about=f"environment {self._id}")["entry_url"])
            self._entry_url = entry
            page = httpx.get(entry, follow_redirects=True, timeout=10, trust_env=False)
            self._check(
                page.status_code == httpx.codes.OK and "noVNC" in page.text,
                f"vnc.html through the session: HTTP {page.status_code}, {len(page.content)} bytes",
            )
            base = entry.split("?", maxsplit=1)[0].removesuffix("/vnc.html")
            socket = base.replace("http", "ws", 1) + "/websockify"
            desktop = handshake(socket, timeout=10)
            self._check(
                desktop.width > 0 and desktop.height > 0,
                f"RFB through the session: {desktop.version}, security types {list(desktop.security_types)}, "
                f"{desktop.width}x{desktop.height}, {desktop.name!r}",
            )

    def _stop_by_signal(self) -> None:
        with self._step("Stop it by hand: temporal workflow signal", "control-worker", "host-worker"):
            workflow_id = environment_workflow_id(self._id)
            arguments = ["workflow", "signal", "--workflow-id", workflow_id, "--name", "stop"]
            command = [temporal_program(), *arguments, "--address", self._up["temporal_address"]]
            self._say("$ temporal " + " ".join(command[1:]))
            endpoints = state.read_endpoints(STATE_DIR)
            assert endpoints is not None
            done = subprocess.run(
                command,
                env=child_environment(STATE_DIR, endpoints, {}),
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            self._check(
                done.returncode == 0,
                f"the signal was taken: {' '.join((done.stdout + done.stderr).split())[:200]}",
            )
            self._settle("stopped", lambda _: self._api.environment(self._id))
            self._check(not leftovers.containers(self._id), "stopped, and its container is gone")

    def _start_again(self) -> None:
        with self._step("Start it again through the API"):
            began = time.monotonic()
            self._settle("running", lambda seconds: self._api.command(self._id, "start", seconds))
            self._starts.append(("start", time.monotonic() - began, self._environment))

    def _reset(self) -> None:
        with self._step("Reset it: a clean desktop of a new generation, the same node"):
            generation = self._environment["generation"]
            began = time.monotonic()
            self._settle("running", lambda seconds: self._api.command(self._id, "reset", seconds))
            self._starts.append(("reset", time.monotonic() - began, self._environment))
            now = self._environment["generation"]
            self._check(now > generation, f"generation {generation} became {now}")
            self._check(self._environment["node_id"] == self._node_id, f"still node {self._node_id[:16]}…")
            self._check(len(leftovers.containers(self._id)) == 1, "one container")

    def _look_back(self) -> None:
        with self._step("Read its log and its timeline"):
            lines = self._api.logs(self._id, refresh=True)
            self._check(lines, f"{len(lines)} log lines, the last ones:")
            for line in lines[-5:]:
                self._say(f"  {render.clean(line)}")
            entries = self._api.timeline(self._id)
            self._check(any(e["name"] == "reset" for e in entries), f"{len(entries)} timeline entries:")
            self._console.print(render.timeline(entries))

    def _delete(self) -> None:
        with self._step("Delete it, and look for what is left"):
            answer = waiting.delete(self._session, self._id, PATIENCE, show=True)
            self._check(answer.get("deleted"), "deleted")
            self._check(not leftovers.containers(self._id), "no container")
            directory = STATE_DIR / "desktop-environments" / self._id
            self._check(not directory.exists(), "no host directory")
            self._check(
                self._refusal("GET", f"/desktop-environments/{self._id}") == 404, "detail answers 404"
            )
            pairings = self._api.call("GET", "/pairings", params={"status": "approved"})["pairings"]
            nodes = [pairing["node"]["node_id"] for pairing in pairings]
            self._check(self._node_id not in nodes, "its node is not paired any more")
            dispatch = {"capability": "tyrum.desktop.screenshot", "args": {"display": "primary"}}
            status = self._refusal("POST", f"/nodes/{self._node_id}/dispatch", dispatch)
            self._check(status in (404, 409), f"its node takes no work any more: HTTP {status}")
            link = httpx.get(self._entry_url, timeout=10, trust_env=False).status_code
            self._check(link == 404, "the takeover link is dead")
            live = leftovers.in_inventory(STATE_DIR / "inventory.db", self._id)
            none = ", ".join(f"{count} {name}" for name, count in live.items())
            self._check(not any(live.values()), f"in the inventory: {none}")
            self._check(self._api.timeline(self._id), "its timeline is kept")

    def _summarise(self) -> None:
        table = render.grid("FROM", "TO RUNNING", "OF WHICH")
        for name, seconds, environment in self._starts:
            phases = environment.get("phases") or {}
            parts = ", ".join(f"{phase} {render.milliseconds(ms)}" for phase, ms in phases.items())
            table.add_row(name, f"{seconds * 1000:.0f} ms", parts)
        self._console.print(
            Text("\nAll of it holds.", style="bold green"), f"{time.monotonic() - self._began:.1f} s"
        )
        self._console.print(table)
        self._console.print(self._addresses())

    @property
    def _id(self) -> str:
        return str(self._environment["environment_id"])

    def _settle(self, goal: str, send: Any) -> None:
        """Wait for the outcome; a signal sent by hand may not have been taken in when the first answer comes."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self._environment = waiting.settle(self._session, self._id, send, PATIENCE, show=True)
            if self._environment["status"] == goal or time.monotonic() > deadline:
                break
            if self._environment["status"] == "error":
                break
        error = self._environment.get("last_error") or {}
        why = f": {error.get('code')}: {error.get('message')}" if error else ""
        self._check(self._environment["status"] == goal, f"{goal}{why}", "host-worker", "control-worker")

    def _input(self, op: str, **args: Any) -> None:
        self._api.dispatch(self._node_id, op, args)
        self._say(f"{op}: {', '.join(f'{name}={value}' for name, value in args.items())}")

    def _stable_screen(self, unlike: bytes | None = None) -> bytes:
        """A screenshot once two in a row are the same, and differ from `unlike`."""
        deadline = time.monotonic() + SCREEN_PATIENCE
        last, _ = take(self._api, self._node_id)
        while True:
            time.sleep(0.15)
            now, _ = take(self._api, self._node_id)
            if now == last and now != unlike and shows_terminal(now):
                return now
            if time.monotonic() > deadline:
                self._check(unlike is None, "the screen changes when something is typed", "api")
                return now
            last = now

    def _refusal(self, method: str, path: str, body: Json | None = None) -> int:
        """HTTP status a request is refused with; 200 if it is not."""
        codes = {ExitCode.NOT_FOUND: 404, ExitCode.CONFLICT: 409}
        try:
            self._api.call(method, path, body=body)
        except CliError as error:
            return codes.get(error.exit_code, 0)
        return 200

    def _say(self, text: str) -> None:
        self._console.print(Text(f"   {text}", style="dim"), soft_wrap=True)

    def _addresses(self) -> Table:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 3))
        table.add_row("API docs", Text(self._up["docs_url"], style="cyan"))
        table.add_row("Temporal Web UI", Text(self._up["temporal_ui_url"], style="cyan"))
        return table

    def describe(self) -> None:
        """Show what the environment itself tells of a failure, as far as the API still answers."""
        if not self._environment:
            return
        try:
            entries, lines = self._api.timeline(self._id), self._api.logs(self._id, refresh=False)
        except CliError as error:
            self._say(f"no timeline: {error.message}")
            return
        self._console.print(Text("--- the end of its timeline", style="bold"), render.timeline(entries[-8:]))
        self._console.print(Text("--- the end of its container's log", style="bold"))
        for line in lines[-8:]:
            self._say(render.clean(line))

    def close(self) -> None:
        """Stop the stack, and remove what a demonstration that broke off has left."""
        if self.stack is not None:
            if self.stack.poll() is None:
                self.stack.terminate()
                try:
                    self.stack.wait(60)
                except subprocess.TimeoutExpired:
                    self.stack.kill()
            self.stack.communicate()
        if self.host_id is not None:
            for name in leftovers.remove_installation(STATE_DIR, self.host_id):
                self._say(f"removed container {name}")


def clean_up() -> None:
    """Remove what an earlier demonstration left; the state directory is made when it is not there.

    Raises:
        CliError: a demonstration runs on this checkout.
    """
    state.prepare(STATE_DIR)
    with state.exclusive(STATE_DIR):
        leftovers.remove_installation(STATE_DIR, state.read_text(STATE_DIR / state.HOST_ID))
        for log in (STATE_DIR / "logs").iterdir():
            log.unlink()


def shows_terminal(image: bytes) -> bool:
    """Whether a window is where the terminal is to be."""
    picture = pixels.decode(image)
    x, y = INSIDE_THE_TERMINAL["x"], INSIDE_THE_TERMINAL["y"]
    return picture.pixel(x, y) != picture.pixel(*BESIDE_THE_TERMINAL)


def save(path: Path, image: bytes) -> str:
    """Write a picture; returns its size for people."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image)
    width, height = int.from_bytes(image[16:20]), int.from_bytes(image[20:24])
    return f"{width}x{height}, {len(image) / 1000:.0f} kB"


def explain(console: Console, failure: DemoFailed) -> None:
    """Say what did not hold and show what the parts logged."""
    for name in failure.logs:
        path = STATE_DIR / "logs" / f"{name}.log"
        # That requests were answered explains nothing.
        lines = [line for line in tail(path, 1000) if _ANSWERED not in line][-TAIL_LINES:]
        if lines:
            console.print(Text(f"--- the end of {path}", style="bold"), soft_wrap=True)
        for line in lines:
            console.print(Text(f"  {render.clean(line)}", style="dim"), soft_wrap=True)
    console.print(Text(f"\nThe demonstration failed: {failure}", style="bold red"), soft_wrap=True)
    console.print(Text(f"Every log: {STATE_DIR / 'logs'}"), soft_wrap=True)


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts.demo", description="The main job, start to finish.")
    parser.add_argument("--keep", action="store_true", help="leave the stack running until Ctrl-C at the end")
    arguments = parser.parse_args()
    console = new_console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    story = Story(console)
    try:
        story.run()
        if arguments.keep and story.stack is not None:
            console.print(Text("\nThe stack keeps running: Ctrl-C ends it.", style="bold"))
            # Ctrl-C is how this ends, and no failure of a story that is told.
            with suppress(KeyboardInterrupt):
                story.stack.wait()
    except DemoFailed as failure:
        story.describe()
        explain(console, failure)
        return 1
    except KeyboardInterrupt:
        console.print(Text("\ninterrupted", style="yellow"))
        return int(ExitCode.INTERRUPTED)
    finally:
        # The end of the stack is bounded in time; a second Ctrl-C must not leave half of it behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        story.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
