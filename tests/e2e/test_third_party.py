"""A third party's image with a third party's node pairs and answers, unmodified (design decision 12)."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.e2e.stack import IMAGE, Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("e2e")]


@pytest.fixture
def foreign_image() -> Iterator[str]:
    """The image, built for the test and removed after it."""
    tag = f"foreign-desktop-test:{uuid.uuid4().hex[:12]}"
    engine = docker.from_env()
    try:
        folder = str(Path(__file__).parent / "foreign")
        engine.images.build(path=folder, tag=tag, buildargs={"BASE_IMAGE": IMAGE}, rm=True, forcerm=True)
        yield tag
    finally:
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.images.remove(tag, force=True)
        engine.close()


def test_it_pairs_and_answers(stack: Stack, environment_ids: list[str], foreign_image: str) -> None:
    environment = stack.create(image_ref=foreign_image, security_profile="compatible", label="foreign")
    environment_ids.append(environment["environment_id"])
    assert environment["status"] == "running", environment["last_error"]
    node_id = environment["node_id"]
    pairing = next(
        pairing
        for pairing in stack.call("GET", "/pairings").json()["pairings"]
        if pairing["node"]["node_id"] == node_id
    )
    assert (pairing["status"], pairing["trust_level"]) == ("approved", "local")
    assert len(pairing["capability_allowlist"]) == 14
    assert pairing["node"]["label"].endswith("(takeover: http://localhost:6080/vnc.html?autoconnect=true)")
    answer = stack.call(
        "POST",
        f"/nodes/{node_id}/dispatch",
        {"capability": "tyrum.fs.read", "args": {"path": "/etc/hostname"}},
    ).json()
    assert answer["ok"] and answer["evidence"]["uid"] == 0, answer
    timeline = stack.call("GET", f"/desktop-environments/{environment['environment_id']}/timeline").json()[
        "entries"
    ]
    started = next(entry for entry in timeline if entry["name"] == "container_started")
    assert started["message"], "the timeline says what the profile gives up"
    stopped = stack.settled(environment["environment_id"], "stop")
    assert stopped["status"] == "stopped"


def test_root_without_the_right_to_it_is_a_clear_error(
    stack: Stack, environment_ids: list[str], foreign_image: str
) -> None:
    created = stack.call(
        "POST", "/desktop-environments", {"desired_running": True, "image_ref": foreign_image}
    )
    environment_id = created.json()["environment"]["environment_id"]
    environment_ids.append(environment_id)

    def errors() -> list[dict[str, Any]]:
        timeline = stack.call("GET", f"/desktop-environments/{environment_id}/timeline").json()["entries"]
        return [entry for entry in timeline if entry["kind"] == "error"]

    error = until(errors, "its error")[0]
    assert error["name"] == "sandbox_exited"
    assert error["detail"]["exit_code"] == 1
    assert "Read-only file system" in " ".join(error["detail"]["log_tail"])
