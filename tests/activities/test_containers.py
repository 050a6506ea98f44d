"""Containers on the real engine: contract, hardening, idempotence, fences, cancellation, removal."""

import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.testing import ActivityEnvironment

from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from models import tokens
from models.identifiers import (
    LABEL_ENVIRONMENT,
    LABEL_GENERATION,
    LABEL_HOST,
    container_name,
    new_environment_id,
)
from models.messages import (
    CaptureLogs,
    ContainerRemoved,
    RemoveContainer,
    SecurityProfile,
    StartContainer,
    WipeRuntime,
)
from tests.activities.conftest import Desk
from tests.support.pausing import pause
from tests.support.waiting import until

pytestmark = pytest.mark.docker


def ours(engine: docker.APIClient, desk: Desk) -> list[dict[str, Any]]:
    """Every container of the environment, in whatever state."""
    return list(engine.containers(all=True, filters={"label": f"{LABEL_ENVIRONMENT}={desk.id}"}))


def remove(desk: Desk, generation: int = 1, grace_seconds: int = 1) -> ContainerRemoved:
    request = RemoveContainer(environment_id=desk.id, generation=generation, grace_seconds=grace_seconds)
    removed = desk.run(desk.host.remove_container, request)
    assert isinstance(removed, ContainerRemoved)
    return removed


def inside(engine: docker.APIClient, container_id: str, command: str) -> tuple[int, str]:
    """Exit code and output of a shell command in the container."""
    execution = engine.exec_create(container_id, ["sh", "-c", command])
    output = engine.exec_start(execution["Id"])
    return int(engine.exec_inspect(execution["Id"])["ExitCode"]), output.decode()


def test_container_is_the_protocols(
    desk: Desk, engine: docker.APIClient, host_id: str, config: HostConfig
) -> None:
    started = desk.start(3, label="my desk")
    found = engine.inspect_container(started.container_id)
    assert started.name == found["Name"].lstrip("/") == container_name(desk.id)
    labels = found["Config"]["Labels"]
    assert (labels[LABEL_ENVIRONMENT], labels[LABEL_HOST], labels[LABEL_GENERATION]) == (
        desk.id,
        host_id,
        "3",
    )
    expected = {
        "TYRUM_HOME=/var/lib/tyrum-node",
        "TYRUM_GATEWAY_TOKEN_PATH=/run/tyrum/gateway-token",
        f"TYRUM_GATEWAY_WS_URL={config.gateway_ws_url}",
        "TYRUM_NODE_LABEL=my desk",
        "TYRUM_NODE_MODE=desktop-sandbox",
        "TYRUM_BROWSER_ENABLED=1",
        "TYRUM_FS_SANDBOX_ROOT=/var/lib/tyrum-node",
        "TYRUM_FS_BASH_ENABLED=1",
        "DESKTOP_VNC_PASSWORD_FILE=/run/tyrum/vnc-password",
    }
    assert expected <= set(found["Config"]["Env"])
    mounts = {mount["Destination"]: (mount["Source"], mount["RW"]) for mount in found["Mounts"]}
    assert mounts == {
        "/var/lib/tyrum-node": (str(desk.home / "runtime-home"), True),
        "/var/lib/tyrum-node/desktop-node/device-identity.json": (
            str(desk.home / "identity" / "desktop-node" / "device-identity.json"),
            False,
        ),
        "/run/tyrum/gateway-token": (str(desk.home / "secrets" / "gateway-token"), False),
        "/run/tyrum/vnc-password": (str(desk.home / "secrets" / "vnc-password"), False),
    }
    assert found["HostConfig"]["ExtraHosts"] == ["host.containers.internal:host-gateway"]
    ports = found["NetworkSettings"]["Ports"]
    assert {(name, len(bound), bound[0]["HostIp"]) for name, bound in ports.items()} == {
        ("5900/tcp", 1, "127.0.0.1"),
        ("6080/tcp", 1, "127.0.0.1"),
    }
    assert int(ports["5900/tcp"][0]["HostPort"]) == started.rfb_port
    assert int(ports["6080/tcp"][0]["HostPort"]) == started.novnc_port
    token = (desk.home / "secrets" / "gateway-token").read_text().strip()
    for secret in (token, tokens.vnc_password(token)):
        assert secret not in str(found), "no secret in what `docker inspect` shows"


def test_hardened_by_default(desk: Desk, engine: docker.APIClient, config: HostConfig) -> None:
    started = desk.start()
    found = engine.inspect_container(started.container_id)
    held = found["HostConfig"]
    assert found["Config"]["User"] == ("1000:1000" if os.geteuid() == 0 else f"{os.geteuid()}:{os.getegid()}")
    assert held["CapDrop"] == ["ALL"] and not held["CapAdd"] and not held["Privileged"]
    assert held["SecurityOpt"] == ["no-new-privileges:true"]
    assert held["ReadonlyRootfs"] and set(held["Tmpfs"]) == {"/tmp", "/run", "/var/tmp"}
    assert held["Memory"] == held["MemorySwap"] == 128 * 1024 * 1024
    assert (held["PidsLimit"], held["NanoCpus"], held["ShmSize"]) == (64, 1_000_000_000, 16 * 1024 * 1024)
    assert held["RestartPolicy"]["Name"] == "no" and held["Init"] is True
    assert held["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "2"}}
    assert held["NetworkMode"] == config.network
    network = engine.inspect_network(config.network)
    assert network["Options"]["com.docker.network.bridge.enable_icc"] == "false"
    assert network["Labels"][LABEL_HOST] == config.host_id
    assert started.notes, "running as another user than the image's is told"


def test_hardened_holds_inside(desk: Desk, engine: docker.APIClient) -> None:
    container_id = desk.start().container_id
    assert inside(engine, container_id, "echo x > /etc/x")[0] != 0
    assert (
        inside(engine, container_id, "echo x > /var/lib/tyrum-node/x && echo x > /tmp/x && echo x > /run/x")[
            0
        ]
        == 0
    )
    token = (desk.home / "secrets" / "gateway-token").read_text()
    assert inside(engine, container_id, "cat /run/tyrum/gateway-token") == (0, token)
    assert inside(engine, container_id, "cat /var/lib/tyrum-node/desktop-node/device-identity.json")[0] == 0
    for name in ("gateway-token", "vnc-password"):
        assert inside(engine, container_id, f"cat /run/tyrum/{name} >/dev/null")[0] == 0
        assert inside(engine, container_id, f"echo x > /run/tyrum/{name}")[0] != 0
    status = inside(engine, container_id, "cat /proc/self/status")[1]
    assert "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status


def test_compatible_is_the_images_own_user_and_says_so(desk: Desk, engine: docker.APIClient) -> None:
    started = desk.start(security_profile=SecurityProfile.COMPATIBLE)
    found = engine.inspect_container(started.container_id)
    held = found["HostConfig"]
    assert found["Config"]["User"] == "" and not held["ReadonlyRootfs"]
    assert held["CapDrop"] == ["NET_RAW"] and held["SecurityOpt"] == ["no-new-privileges:true"]
    assert held["PidsLimit"] == 64 and held["Memory"] == 128 * 1024 * 1024
    assert any("compatible" in note for note in started.notes)
    assert (
        inside(engine, started.container_id, "id -u && echo x > /etc/x && cat /run/tyrum/gateway-token")[0]
        == 0
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")
def test_image_that_names_a_user_gets_files_it_can_read(
    desk: Desk, engine: docker.APIClient, make_image: Callable[..., str]
) -> None:
    image = make_image('CMD ["/bin/desktop"]', "ENV PATH=/bin", "USER agent")
    started = desk.start(image_ref=image)
    assert engine.inspect_container(started.container_id)["Config"]["User"] == "agent"
    code, output = inside(
        engine,
        started.container_id,
        "id -u; cat /run/tyrum/gateway-token >/dev/null; echo x > /var/lib/tyrum-node/x",
    )
    assert (code, output) == (0, "1234\n")
    secrets = ("secrets/gateway-token", "secrets/vnc-password", "identity/desktop-node/device-identity.json")
    for path in ("runtime-home", *secrets):
        status = (desk.home / path).stat()
        assert (status.st_uid, status.st_gid) == (1234, 1235)
        assert stat.S_IMODE(status.st_mode) in (0o600, 0o700)


def test_image_of_a_user_it_does_not_know_is_a_mismatch(
    desk: Desk, engine: docker.APIClient, make_image: Callable[..., str]
) -> None:
    image = make_image('CMD ["/bin/desktop"]', "USER nobody-there")
    with pytest.raises(ApplicationError) as caught:
        desk.start(image_ref=image)
    assert caught.value.type == "image_mismatch" and "nobody-there" in str(caught.value)
    assert not ours(engine, desk)


def test_twice_is_once(desk: Desk, engine: docker.APIClient) -> None:
    first, second = desk.start(), desk.start()
    assert (first.container_id, first.rfb_port, first.novnc_port) == (
        second.container_id,
        second.rfb_port,
        second.novnc_port,
    )
    assert (first.adopted, second.adopted) == (False, True)
    adopted = desk.start(adopt_only=True)
    assert adopted.adopted and adopted.container_id == first.container_id
    assert len(ours(engine, desk)) == 1


def test_twice_at_the_same_time_is_once(desk: Desk, engine: docker.APIClient) -> None:
    desk.prepare()
    results: list[Any] = []

    def start() -> None:
        results.append(desk.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=1)))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({result.container_id for result in results}) == 1 and len(results) == 4
    assert len(ours(engine, desk)) == 1


def test_a_new_worker_finds_the_container(desk: Desk, config: HostConfig, engine: docker.APIClient) -> None:
    first = desk.start()
    desk.host.close()
    desk.host = DockerHostActivities(config)
    again = desk.start()
    assert again.adopted and again.container_id == first.container_id
    desk.host.close()


def test_newer_generation_replaces_and_older_is_refused(desk: Desk, engine: docker.APIClient) -> None:
    first = desk.start(1)
    second = desk.start(2)
    assert second.container_id != first.container_id
    assert [found["Id"] for found in ours(engine, desk)] == [second.container_id]
    with pytest.raises(ApplicationError, match="generation 2 exists") as caught:
        desk.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=1))
    assert caught.value.type == "start_failed" and caught.value.non_retryable
    assert not remove(desk, 1).removed, "a late removal of the old one leaves the new one"
    desk.run(desk.host.wipe_runtime, WipeRuntime(environment_id=desk.id, generation=1))
    assert [found["Id"] for found in ours(engine, desk)] == [second.container_id]


def test_adopt_only_makes_nothing(desk: Desk, engine: docker.APIClient) -> None:
    with pytest.raises(ApplicationError) as caught:
        desk.start(adopt_only=True)
    assert caught.value.type == "sandbox_exited" and not ours(engine, desk)
    desk.start(1)
    with pytest.raises(ApplicationError):
        desk.start(2, adopt_only=True)
    assert [found["Labels"][LABEL_GENERATION] for found in ours(engine, desk)] == ["1"]


def test_a_container_left_half_done_is_made_again(
    desk: Desk, engine: docker.APIClient, image: str, host_id: str
) -> None:
    started = desk.start()
    labels = engine.inspect_container(started.container_id)["Config"]["Labels"]
    remove(desk, 0)
    engine.remove_container(started.container_id, force=True)
    ports = engine.create_host_config(port_bindings={5900: ("127.0.0.1",), 6080: ("127.0.0.1",)})
    made = engine.create_container(
        image, name=container_name(desk.id), labels=labels, ports=[5900, 6080], host_config=ports
    )
    with pytest.raises(ApplicationError):
        desk.start(adopt_only=True)
    again = desk.start()
    assert again.container_id != made["Id"] and not again.adopted
    assert [(found["Id"], found["State"]) for found in ours(engine, desk)] == [
        (again.container_id, "running")
    ]


def test_one_that_exited_is_not_started_again(desk: Desk, engine: docker.APIClient) -> None:
    started = desk.start()
    until(lambda: b"desktop as" in engine.logs(started.container_id), "its first line")
    engine.kill(started.container_id)
    engine.wait(started.container_id)
    with pytest.raises(ApplicationError) as caught:
        desk.start()
    error = caught.value
    assert error.type == "sandbox_exited" and error.details[0]["exit_code"] == 137
    assert error.details[0]["log_tail"] == [f"desktop as {1000 if os.geteuid() == 0 else os.geteuid()}"]
    assert desk.start(2).container_id != started.container_id


def test_paused_is_not_adopted(desk: Desk, engine: docker.APIClient) -> None:
    pause(engine, desk.start().container_id)
    with pytest.raises(ApplicationError) as caught:
        desk.start(adopt_only=True)
    assert caught.value.type == "sandbox_unhealthy"
    assert remove(desk).removed and not ours(engine, desk)


def test_a_strangers_container_is_never_touched(
    desk: Desk, engine: docker.APIClient, image: str, host_id: str
) -> None:
    for labels in ({}, {LABEL_ENVIRONMENT: desk.id, LABEL_HOST: f"{host_id}-other", LABEL_GENERATION: "1"}):
        made = engine.create_container(image, name=container_name(desk.id), labels=labels)
        try:
            with pytest.raises(ApplicationError, match="did not make") as caught:
                desk.start()
            assert caught.value.type == "start_failed" and caught.value.non_retryable
            assert not remove(desk, 9).removed
            assert not desk.run(desk.host.capture_logs, CaptureLogs(environment_id=desk.id)).found
            assert engine.inspect_container(made["Id"])["State"]["Status"] == "created"
        finally:
            engine.remove_container(made["Id"], force=True)
        desk.id = new_environment_id()
        desk.spec = desk.spec.model_copy(update={"environment_id": desk.id})


def test_removal_takes_exit_code_and_log_and_waits_until_it_is_gone(
    desk: Desk, engine: docker.APIClient
) -> None:
    desk.start(label="talks")
    removed = remove(desk)
    assert removed.removed and removed.exit_code in (137, 143)
    assert len(removed.lines) <= 200
    assert not ours(engine, desk)
    assert remove(desk) == ContainerRemoved(), "absent is success"


def test_stubborn_is_killed_after_the_grace_time(desk: Desk, engine: docker.APIClient) -> None:
    desk.start(label="stubborn")
    removed = remove(desk, grace_seconds=1)
    assert removed.exit_code == 137 and not ours(engine, desk)


def test_removal_of_what_exited_keeps_its_exit_code(desk: Desk, engine: docker.APIClient) -> None:
    started = desk.start(label="fades")
    engine.wait(started.container_id)
    removed = remove(desk)
    assert (removed.exit_code, removed.oom_killed) == (7, False)
    assert removed.lines[-1] == "up for a moment"


def test_fence_keeps_a_late_start_out(desk: Desk, engine: docker.APIClient) -> None:
    desk.prepare(2)
    assert not remove(desk, 2).removed
    with pytest.raises(ApplicationError, match="removed already") as caught:
        desk.start(2)
    assert caught.value.type == "start_failed" and caught.value.non_retryable
    assert not ours(engine, desk)
    desk.start(3)


def test_start_without_its_token_is_refused(desk: Desk, engine: docker.APIClient) -> None:
    desk.prepare(1)
    with pytest.raises(ApplicationError, match="come first") as caught:
        desk.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=2))
    assert caught.value.type == "internal" and not ours(engine, desk)


def test_image_that_cannot_run_is_a_mismatch(desk: Desk, make_image: Callable[..., str]) -> None:
    def start() -> None:
        started = desk.start(image_ref=make_image('CMD ["/no/such/program"]'))
        # It may have been running for the moment in which start looked.
        desk.wait_for_pairing(started)

    with pytest.raises(ApplicationError) as caught:
        start()
    assert caught.value.type == "image_mismatch"
    assert "No such file" in str(caught.value)


def test_network_removed_by_hand_is_made_again(
    desk: Desk, engine: docker.APIClient, config: HostConfig
) -> None:
    desk.start(1)
    remove(desk, 1)
    engine.remove_network(config.network)
    with pytest.raises(ApplicationError, match="network") as caught:
        desk.start(2)
    assert caught.value.type == "start_failed" and not caught.value.non_retryable
    desk.start(2)
    assert engine.inspect_network(config.network)["Name"] == config.network


def test_wipe_refuses_while_the_container_is_there(desk: Desk) -> None:
    desk.start()
    with pytest.raises(ApplicationError, match="removed first"):
        desk.run(desk.host.wipe_runtime, WipeRuntime(environment_id=desk.id, generation=1))


def test_logs(desk: Desk) -> None:
    started = desk.start(label="talks")
    deadline = time.monotonic() + 20
    lines: list[str] = []
    while time.monotonic() < deadline and not any("masked" in line for line in lines):
        captured = desk.run(desk.host.capture_logs, CaptureLogs(environment_id=desk.id))
        lines = captured.lines
        time.sleep(0.05)
    assert captured.found and 0 < len(lines) <= 200
    assert "line 299" in lines and "tyrum-token.v1.[masked]" in lines
    assert not desk.run(desk.host.capture_logs, CaptureLogs(environment_id=desk.id, generation=5)).found
    assert not desk.run(desk.host.capture_logs, CaptureLogs(environment_id=new_environment_id())).found
    assert started.container_id


class Cancelling:
    """Runs a step in a thread and cancels it at its nth heartbeat, or after a time."""

    def __init__(self, desk: Desk) -> None:
        self.env = ActivityEnvironment()
        self.desk = desk
        self.beats = 0
        self.error: BaseException | None = None
        self.result: Any = None

    def at_beat(self, number: int) -> None:
        def beat(*details: Any) -> None:
            self.beats += 1
            if self.beats == number:
                self.env.cancel()

        self.env.on_heartbeat = beat

    def run(self, step: Callable[[Any], Any], request: Any) -> None:
        try:
            self.result = self.env.run(step, request)
        except (CancelledError, ApplicationError) as error:
            self.error = error


@pytest.mark.parametrize("beat", [1, 2, 3])
def test_start_cancelled_at_each_heartbeat_leaves_nothing_behind_a_removal(
    desk: Desk, engine: docker.APIClient, beat: int
) -> None:
    desk.prepare()
    cancelling = Cancelling(desk)
    cancelling.at_beat(beat)
    cancelling.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=1))
    assert cancelling.result is not None or isinstance(cancelling.error, CancelledError)
    remove(desk)
    assert not ours(engine, desk)
    time.sleep(0.3)
    assert not ours(engine, desk), "nothing comes after the removal"


@pytest.mark.parametrize("delay_ms", [0, 20, 60, 120, 250])
def test_removal_racing_a_start_always_wins(desk: Desk, engine: docker.APIClient, delay_ms: int) -> None:
    desk.prepare()
    starting = Cancelling(desk)
    thread = threading.Thread(
        target=starting.run, args=(desk.host.start_container, StartContainer(spec=desk.spec, generation=1))
    )
    thread.start()
    time.sleep(delay_ms / 1000)
    starting.env.cancel()
    remove(desk)
    assert not ours(engine, desk)
    thread.join(30)
    assert not thread.is_alive() and not ours(engine, desk)


def test_cancellation_is_prompt_while_the_environment_is_locked(desk: Desk, engine: docker.APIClient) -> None:
    started = desk.start(label="stubborn")
    removing = threading.Thread(target=remove, args=(desk, 1, 30))
    removing.start()
    until(lambda: b"asked to end" in engine.logs(started.container_id), "the removal under way")
    cancelling = Cancelling(desk)
    cancelling.at_beat(1)
    cancelling.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=2))
    assert isinstance(cancelling.error, CancelledError)
    assert removing.is_alive(), "it waited for the removal's grace time"
    engine.kill(container_name(desk.id))
    removing.join(30)


def test_cancelled_between_create_and_start_nothing_is_left(
    desk: Desk, engine: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.prepare()
    cancelling = Cancelling(desk)
    containers = desk.host._containers
    give = containers._give_files

    def slow_give(*arguments: Any) -> None:
        cancelling.env.cancel()
        time.sleep(0.3)
        give(*arguments)

    monkeypatch.setattr(containers, "_give_files", slow_give)
    cancelling.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=1))
    assert isinstance(cancelling.error, CancelledError)
    deadline = time.monotonic() + 10
    while ours(engine, desk) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not ours(engine, desk)


def test_a_missing_identity_file_never_becomes_a_directory(desk: Desk, engine: docker.APIClient) -> None:
    desk.prepare()
    identity: Path = desk.home / "identity" / "desktop-node" / "device-identity.json"
    identity.unlink()
    with pytest.raises(ApplicationError, match="come first"):
        desk.run(desk.host.start_container, StartContainer(spec=desk.spec, generation=1))
    assert not identity.exists()
