"""How fast container trouble is over, at the real stack: `python -m benchmarks.trouble [--runs N] [--part NAME …]`.

Every table has the median, p95, n and, where there is one, the floor: the same thing done by hand in the same run.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from activities.probes import prove_novnc, prove_rfb
from activities.steps import Step
from benchmarks.report import Table, end_in_order, machine
from tests.e2e.stack import IMAGE
from tests.support.pausing import pause
from tests.trouble.field import PARTS, Field, prepared_field, within
from tests.trouble.registry import slow_registry

LABEL = {"desktop-environments.test": "trouble"}


class Bench:
    """The parts of the benchmark, on one field."""

    def __init__(self, field: Field, runs: int) -> None:
        self._field = field
        self._runs = runs

    def recovery(self) -> None:
        """Noticed, and usable again, by what happened to the container."""
        field, table = self._field, Table("Container trouble: noticed and usable again")
        killed = table.floor("`docker kill` until Docker's `die` event", self._die_floor())
        started = table.floor("container by hand until RFB and noVNC answer", self._start_floor())
        ways: dict[str, Callable[[str], Callable[[], Any]]] = {
            "docker kill": lambda found: field.container(found).kill,
            "docker rm -f": lambda found: partial(field.container(found).remove, force=True),
            "docker pause": lambda found: partial(pause, field.engine.api, field.container(found).id),
            "out of memory as a whole": partial(field.out_of_memory, whole=True),
            **{f"{name} killed inside": partial(field.kill_inside, process=PARTS[name]) for name in PARTS},
        }
        for way, trouble in ways.items():
            seen = []
            for _ in range(self._runs if way == "docker kill" else max(3, self._runs // 3)):
                environment_id = field.running()
                seen.append(field.recover(environment_id, trouble(environment_id)))
                field.delete(environment_id)
            table.row(f"{way}: noticed", [one.noticed for one in seen], "p95 1 s", floor=killed)
            table.row(f"{way}: usable again", [one.usable for one in seen], "p95 3 s", floor=killed + started)
            late = [one for one in seen if one.noticed > 1]
            print(f"<!-- {way}: reads before noticed {sum(one.reads for one in seen)}, late {len(late)} -->")

    def deletes(self) -> None:
        """Deletes in the middle of a start, and what is left when many race."""
        field, table = self._field, Table("Delete during a start")
        chance = random.Random(5)  # noqa: S311  # repeatable, no secret
        answered, gone = [], []
        for _ in range(2 * self._runs):
            environment_id = field.create()
            time.sleep(chance.uniform(0, 0.5))
            began = time.monotonic()
            field.command(environment_id, "delete")
            answered.append(time.monotonic() - began)
            field.until_gone(environment_id)
            field.until_no_container(environment_id)
            gone.append(time.monotonic() - began)
            field.check_nothing_left(environment_id)
        table.row("delete accepted", answered)
        table.row("container gone, tombstone written", gone, "p95 3 s")
        count, began = 200, time.monotonic()
        pauses = [chance.uniform(0, 2) for _ in range(count)]

        def life(pause: float) -> str:
            environment_id = field.create()
            time.sleep(pause)
            field.command(environment_id, "delete", wait=60)
            return environment_id

        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(life, pauses))
        leaked = sum(bool(field.stack.containers(environment_id)) for environment_id in made)
        homes = sum(field.home(environment_id).exists() for environment_id in made)
        print(
            f"\n{count} environments created and deleted at random moments, 16 at a time, in "
            f"{time.monotonic() - began:.0f} s: {leaked} containers and {homes} directories left."
        )

    def many(self) -> None:
        """Twenty at once."""
        field, table, seconds = self._field, Table("Created at once, all paired"), []
        for _ in range(max(3, self._runs // 6)):
            began = time.monotonic()
            made = field.many(20)
            with ThreadPoolExecutor(20) as pool:
                settled = list(pool.map(lambda found: field.settle(found, "start"), made))
            assert {environment["status"] for environment in settled} == {"running"}
            seconds.append(time.monotonic() - began)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(field.delete, made))
        table.row("20 environments: all running", seconds, "15 s")

    def engine(self) -> None:
        """The engine cut off, hung, or busy."""
        field, table = self._field, Table("Docker engine down, hung, or busy with a pull")
        environment_id = field.running()
        for way in ("down", "hung"):
            told, back = [], []
            for _ in range(max(3, self._runs // 5)):
                began = time.monotonic()
                _break(field, way)
                field.until(environment_id, status="error")
                told.append(time.monotonic() - began)
                began = time.monotonic()
                _mend(field, way)
                field.until(environment_id, status="running")
                back.append(time.monotonic() - began)
            table.row(f"engine {way}: environment says `docker_unavailable`", told)
            table.row(f"engine {way}: back, and `running` again (same container)", back)
        assert field.check_agreement(environment_id, "running")["generation"] == 1
        seconds = []
        with slow_registry() as registry:
            pulling = field.create(image_ref=registry.image)
            assert registry.asked.wait(20)
            for _ in range(max(3, self._runs // 3)):
                began = time.monotonic()
                field.settle(environment_id, "stop")
                seconds.append(time.monotonic() - began)
                field.settle(environment_id, "start")
            field.delete(pulling)
        table.row("stop of one beside the endless pull of another", seconds)
        field.delete(environment_id)

    def host(self) -> None:
        """The host worker frozen, and a delete meanwhile."""
        field, table = self._field, Table("Delete with the host away (its worker frozen)")
        lost, gone, returned = [], [], []
        for _ in range(max(2, self._runs // 10)):
            environment_id = field.running()
            token = field.token(environment_id)
            link = field.stack.call("POST", f"/desktop-environments/{environment_id}/takeover-token").json()
            with field.frozen("workers.host"):
                began = time.monotonic()
                field.until(environment_id, 40, status="error")
                lost.append(time.monotonic() - began)
                began = time.monotonic()
                field.command(environment_id, "delete")
                field.until_gone(environment_id)
                field.until_nothing_live(environment_id)
                gone.append(time.monotonic() - began)
                assert field.refused(token) == 4001
                assert field.stack.http.get(link["entry_url"]).status_code == 404
            began = time.monotonic()
            field.until_no_container(environment_id, 60)
            field.check_nothing_left(environment_id)
            returned.append(time.monotonic() - began)
            within(lambda: field.host()["healthy"], "the host recorded")
        table.row("host lost: environment says `host_unreachable`", lost, "20 s")
        table.row("deleted: nothing live left (tombstone, tokens, pairing, takeover, socket)", gone)
        table.row("host back: container and files gone", returned, "30 s")

    def _die_floor(self) -> list[float]:
        seconds = []
        for _ in range(max(5, self._runs // 3)):
            with self._by_hand() as container:
                events = self._field.engine.events(
                    decode=True, filters={"container": container.id, "event": "die"}
                )
                began = time.monotonic()
                container.kill()
                next(events)
                seconds.append(time.monotonic() - began)
                events.close()
        return seconds

    def _start_floor(self) -> list[float]:
        seconds = []
        for _ in range(max(5, self._runs // 3)):
            began = time.monotonic()
            with self._by_hand() as container:
                container.reload()
                ports = container.ports
                prove_rfb(int(ports["5900/tcp"][0]["HostPort"]), Step())
                prove_novnc(int(ports["6080/tcp"][0]["HostPort"]), Step())
                seconds.append(time.monotonic() - began)
        return seconds

    @contextmanager
    def _by_hand(self) -> Iterator[Any]:
        # Its node has no gateway and waits for its token; the desktop is the same.
        container = self._field.engine.containers.run(
            IMAGE,
            detach=True,
            init=True,
            labels=LABEL,
            name=f"trouble-by-hand-{uuid4().hex[:8]}",
            ports={"5900/tcp": ("127.0.0.1", 0), "6080/tcp": ("127.0.0.1", 0)},
        )
        try:
            yield container
        finally:
            container.remove(force=True)


def _break(field: Field, way: str) -> None:
    if way == "down":
        field.relay.cut()
    else:
        field.relay.hang = True


def _mend(field: Field, way: str) -> None:
    if way == "down":
        field.relay.up()
    else:
        field.relay.hang = False


def main() -> None:
    """Run what was asked for."""
    parts = ["recovery", "deletes", "many", "engine", "host"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=30, help="of the most frequent measurement; others take fewer"
    )
    parser.add_argument("--part", choices=parts, action="append", help="only this part; may be repeated")
    asked = parser.parse_args()
    end_in_order()
    print(f"Machine: {machine()}")
    for part in asked.part or parts:
        relayed = part == "engine"
        with (
            tempfile.TemporaryDirectory(prefix="bench-trouble-") as directory,
            prepared_field(Path(directory), relayed=relayed) as field,
        ):
            getattr(Bench(field, asked.runs), part)()


if __name__ == "__main__":
    main()
