"""`await_node_pairing` on real containers with a made-up gateway."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import docker
import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities import pairing
from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from activities.inspection import parse_docker_time
from activities.probes import gateway_origin
from models.errors import ErrorCode
from tests.activities.conftest import Desk
from tests.activities.gateway import FakeGateway
from tests.support.pausing import pause

pytestmark = pytest.mark.docker


def with_deadline(desk: Desk, config: HostConfig, seconds: float) -> None:
    desk.host.close()
    desk.host = DockerHostActivities(replace(config, pairing_seconds=seconds))


def refused(desk: Desk, label: str) -> ApplicationError:
    started = desk.start(label=label)
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(started)
    return caught.value


def test_ready_when_all_three_are_proven(desk: Desk, gateway: FakeGateway) -> None:
    gateway.answer(connected=True, approved=True)
    started = desk.start()
    token = (desk.home / "secrets" / "gateway-token").read_text().strip()
    paired = desk.wait_for_pairing(started)
    assert (paired.node_id, paired.pairing_id) == ("dev_test", 7)
    assert set(paired.phases) == {"rfb", "novnc", "node_connected", "paired"}
    assert all(0 < value < 60_000 for value in paired.phases.values())
    assert set(gateway.tokens) == {f"Bearer {token}"} and all(float(wait) > 0 for wait in gateway.waits)
    again = desk.wait_for_pairing(started)
    assert again.node_id == paired.node_id, "a repetition proves it again"


def test_connected_and_paired_are_timed_apart(desk: Desk, gateway: FakeGateway) -> None:
    started = desk.start()
    steps = [
        threading.Timer(0.3, gateway.answer, kwargs={"connected": True, "approved": False}),
        threading.Timer(0.8, gateway.answer, kwargs={"connected": True, "approved": True}),
    ]
    for step in steps:
        step.start()
    paired = desk.wait_for_pairing(started)
    assert paired.phases["paired"] - paired.phases["node_connected"] > 100


def test_death_is_told_at_once_with_code_and_log(desk: Desk) -> None:
    started = desk.start(label="fades")
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(started)
    error = caught.value
    assert error.type == "sandbox_exited" and error.non_retryable
    detail = error.details[0]
    assert (detail["exit_code"], detail["oom_killed"], detail["generation"]) == (7, False, 1)
    assert detail["log_tail"][-1] == "up for a moment"


def test_death_before_the_wait_began(desk: Desk, engine: docker.APIClient) -> None:
    started = desk.start(label="fades")
    engine.wait(started.container_id)
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(started)
    assert caught.value.type == "sandbox_exited"


def test_quits_at_once(desk: Desk) -> None:
    # Whether start or the wait sees it first is Docker's affair.
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(desk.start(label="quits"))
    assert caught.value.type == "sandbox_exited" and caught.value.details[0]["exit_code"] == 3
    assert "no display" in caught.value.details[0]["log_tail"]


def test_out_of_memory_is_told(desk: Desk) -> None:
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(desk.start(label="hungry"))
    detail = caught.value.details[0]
    if not detail["oom_killed"]:
        pytest.skip("this kernel ended another process of the sandbox first")
    assert "out of memory" in str(caught.value)


@pytest.mark.parametrize(("act", "code"), [("remove", "sandbox_exited"), ("pause", "sandbox_unhealthy")])
def test_interference_from_outside(desk: Desk, engine: docker.APIClient, act: str, code: str) -> None:
    started = desk.start()

    def interfere() -> None:
        if act == "remove":
            engine.remove_container(started.container_id, force=True)
        else:
            pause(engine, started.container_id)

    timer = threading.Timer(0.5, interfere)
    timer.start()
    with pytest.raises(ApplicationError) as caught:
        desk.wait_for_pairing(started)
    timer.join()
    assert caught.value.type == code and caught.value.non_retryable


@pytest.mark.parametrize(
    ("label", "missing"),
    [
        ("mute", "RFB.*noVNC.*pairing"),
        ("desk", r"missing: the node's pairing \(the node has not connected\)"),
    ],
)
def test_timeout_names_what_is_missing(desk: Desk, config: HostConfig, label: str, missing: str) -> None:
    with_deadline(desk, config, 4)
    error = refused(desk, label)
    assert error.type == "pairing_timeout" and error.non_retryable
    assert error.details[0]["log_tail"], "with the log tail"
    with pytest.raises(AssertionError, match=missing):
        raise AssertionError(str(error))
    desk.host.close()


def test_gateway_that_is_away_is_named(desk: Desk, config: HostConfig) -> None:
    with_deadline(desk, replace(config, gateway_url="http://127.0.0.1:9"), 4)
    assert "the gateway was not reached" in str(refused(desk, "desk"))
    desk.host.close()


def test_pairing_that_waits_for_an_operator_is_named(
    desk: Desk, config: HostConfig, gateway: FakeGateway
) -> None:
    gateway.answer(connected=True, approved=False, status="awaiting_human")
    with_deadline(desk, config, 4)
    assert "its pairing is awaiting_human" in str(refused(desk, "desk"))
    desk.host.close()


@pytest.mark.parametrize("status", ["revoked", "denied"])
def test_what_an_operator_refused_is_told_at_once_and_lasts(
    desk: Desk, gateway: FakeGateway, status: str
) -> None:
    gateway.answer(connected=True, approved=False, status=status)
    error = refused(desk, "desk")
    assert error.type == "pairing_timeout" and error.non_retryable
    assert error.details[0]["lasting"] and error.details[0]["log_tail"]
    assert f"an operator has {status}" in str(error) and "/pairings/7/approve" in str(error)


def test_a_refused_token_is_final_after_a_while(
    desk: Desk, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "REFUSED_SECONDS", 0.5)
    gateway.status = 401
    error = refused(desk, "desk")
    assert error.type == ErrorCode.PAIRING_TIMEOUT and "refused the node's token" in str(error)
    token = (desk.home / "secrets" / "gateway-token").read_text().strip()
    assert token not in str(error) and token not in str(error.details)


@pytest.mark.parametrize(
    "body", [{}, {"connected": True, "approved": True}, {"connected": True, "approved": True, "node": 1}]
)
def test_odd_answers_do_not_break_it(
    desk: Desk, config: HostConfig, gateway: FakeGateway, body: dict[str, object]
) -> None:
    gateway.body = {"approved": False, **body}
    with_deadline(desk, config, 1.0)
    assert refused(desk, "desk").type == "pairing_timeout"
    desk.host.close()


def test_cancelled_promptly_and_threads_end(desk: Desk) -> None:
    started = desk.start()
    env = ActivityEnvironment()
    threading.Timer(0.5, env.cancel).start()
    with pytest.raises(CancelledError):
        env.run(desk.host.await_node_pairing, desk.pairing(started))
    name = started.container_id[:12]

    def left() -> list[str]:
        return [thread.name for thread in threading.enumerate() if name in thread.name]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left()


def test_heartbeat_tells_what_it_waits_for(desk: Desk, config: HostConfig) -> None:
    with_deadline(desk, config, 4)
    env = ActivityEnvironment()
    told: list[str] = []
    env.on_heartbeat = lambda *details: told.append(str(details[0]))
    started = desk.start()
    with pytest.raises(ApplicationError):
        env.run(desk.host.await_node_pairing, desk.pairing(started))
    assert any("waiting for" in text and "pairing" in text for text in told)
    desk.host.close()


@pytest.mark.parametrize(
    ("ws_url", "origin"),
    [
        ("ws://host.containers.internal:8788/ws", "http://172.17.0.1:8788"),
        ("wss://gateway.example/ws", "https://gateway.example"),
        ("ws://10.0.0.1:9000/ws", "http://10.0.0.1:9000"),
    ],
)
def test_gateway_origin(ws_url: str, origin: str) -> None:
    assert gateway_origin(ws_url, "172.17.0.1") == origin


def test_docker_times() -> None:
    times: Callable[[str], str] = lambda text: parse_docker_time(text).isoformat()  # noqa: E731
    assert times("2026-11-23T12:30:00.123456789Z") == "2026-11-23T12:30:00.123456+00:00"
    assert times("2026-11-23T12:30:00Z") == "2026-11-23T12:30:00+00:00"
