"""Engines that are away, hung or odd: what is said of them, and when."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import docker
import pytest
import requests
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import docker_host
from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from activities.engine import Engine, readable, reason
from models.errors import ErrorCode
from models.identifiers import new_environment_id
from models.messages import (
    CaptureLogs,
    EnsureImage,
    EnvironmentSpec,
    MintNodeToken,
    PrepareIdentity,
    RemoveContainer,
    StartContainer,
    WipeRuntime,
)
from tests.activities.conftest import SDK_LEAKS

pytestmark = [SDK_LEAKS, pytest.mark.usefixtures("sdk_leaks")]


@pytest.fixture
def bare_config(tmp_path: Path) -> HostConfig:
    return HostConfig(host_id="h", state_dir=tmp_path, gateway_ws_url="ws://host.containers.internal:1/ws")


@pytest.fixture
def hung() -> Iterator[str]:
    """A socket that accepts and answers nothing."""
    with TemporaryDirectory(prefix="hung") as directory:
        path = os.path.join(directory, "docker.sock")
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen(64)
        yield f"unix://{path}"
        server.close()


@pytest.mark.parametrize(
    "name", ["ensure_image", "start_container", "capture_logs", "remove_container", "wipe_runtime"]
)
def test_an_engine_that_is_away_is_docker_unavailable(
    bare_config: HostConfig, name: str, tmp_path: Path
) -> None:
    environment_id = new_environment_id()
    spec = EnvironmentSpec(environment_id=environment_id, host_id="h", image_ref="x")
    requests_ = {
        "ensure_image": EnsureImage(environment_id=environment_id, generation=1, image_ref="x"),
        "start_container": StartContainer(spec=spec, generation=1),
        "capture_logs": CaptureLogs(environment_id=environment_id),
        "remove_container": RemoveContainer(environment_id=environment_id, generation=1),
        "wipe_runtime": WipeRuntime(environment_id=environment_id, generation=1),
    }
    host = DockerHostActivities(replace(bare_config, docker_host=f"unix://{tmp_path}/none.sock"))
    with pytest.raises(ApplicationError) as caught:
        ActivityEnvironment().run(getattr(host, name), requests_[name])
    assert caught.value.type == "docker_unavailable" and not caught.value.non_retryable
    assert caught.value.details[0]["phase"] == name
    assert "cannot be reached" in str(caught.value) and "Traceback" not in str(caught.value)


def test_files_need_no_engine(bare_config: HostConfig, tmp_path: Path) -> None:
    host = DockerHostActivities(replace(bare_config, docker_host=f"unix://{tmp_path}/none.sock"))
    request = MintNodeToken(environment_id=new_environment_id(), generation=1, ttl_seconds=60)
    assert ActivityEnvironment().run(host.mint_node_token, request).token_sha256


def test_a_start_is_prepared_with_files_first_and_the_image_last(
    bare_config: HostConfig, tmp_path: Path
) -> None:
    host = DockerHostActivities(replace(bare_config, docker_host=f"unix://{tmp_path}/none.sock"))
    request = PrepareIdentity(environment_id=new_environment_id(), generation=1, ttl_seconds=60)
    prepared = ActivityEnvironment().run(host.prepare_identity, request)
    assert prepared.created and prepared.token is not None and prepared.image is None
    again = ActivityEnvironment().run(host.prepare_identity, request)
    assert again.token == prepared.token and not again.created
    with pytest.raises(ApplicationError) as caught:
        ActivityEnvironment().run(host.prepare_identity, request.model_copy(update={"image_ref": "image:1"}))
    assert caught.value.type == "docker_unavailable" and not caught.value.non_retryable


def test_a_hung_engine_is_told_from_one_that_is_away(bare_config: HostConfig, hung: str) -> None:
    engine = Engine(hung, answer_seconds=0.3)
    with pytest.raises((docker.errors.DockerException, requests.exceptions.RequestException)) as caught:
        engine.inspect("x")
    code, text = reason(caught.value)
    assert code is ErrorCode.DOCKER_UNAVAILABLE and "does not answer in time" in text


def test_a_step_at_a_hung_engine_is_cancelled_promptly(
    bare_config: HostConfig, hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_host, "Engine", lambda address: Engine(address, 2, 2))
    host = DockerHostActivities(replace(bare_config, docker_host=hung))
    env = ActivityEnvironment()
    threading.Timer(0.2, env.cancel).start()
    request = EnsureImage(environment_id=new_environment_id(), generation=1, image_ref="x")
    with pytest.raises(Exception, match="cancelled"):
        env.run(host.ensure_image, request)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", ErrorCode.IMAGE_MISMATCH),
        ("No command specified", ErrorCode.IMAGE_MISMATCH),
        (
            "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "
            '"/x": stat /x: no such file or directory: unknown',
            ErrorCode.IMAGE_MISMATCH,
        ),
        ("No such image: nothing:1", ErrorCode.IMAGE_NOT_FOUND),
        (
            "driver failed programming external connectivity: port is already allocated",
            ErrorCode.START_FAILED,
        ),
        ("network sandboxes not found", ErrorCode.START_FAILED),
    ],
)
def test_what_docker_says_is_classified_and_readable(text: str, code: ErrorCode) -> None:
    error = docker.errors.APIError("500", explanation=text)
    assert reason(error)[0] is code
    assert "container_linux" not in readable(error) and "\n" not in readable(error)


def test_an_engine_without_errors_of_its_own_is_internal() -> None:
    assert reason(KeyError("x"))[0] is ErrorCode.INTERNAL
