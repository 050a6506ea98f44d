"""A tiny sandbox image made of busybox, a host of its own per session, and a reaper that removes only what is
ours.
"""

import contextlib
import gc
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
from temporalio.testing import ActivityEnvironment

from activities.container_spec import HostConfig
from activities.docker_host import DockerHostActivities
from models.identifiers import LABEL_HOST, new_environment_id
from models.messages import (
    AwaitNodePairing,
    ContainerStarted,
    EnvironmentSpec,
    Limits,
    MintNodeToken,
    NodePaired,
    NodeToken,
    PrepareIdentity,
    StartContainer,
)
from tests.activities.gateway import FakeGateway

# What the sandbox does is chosen by the environment's label, which reaches it as TYRUM_NODE_LABEL.
DESKTOP = r"""#!/bin/busybox sh
echo "desktop as $(id -u)"
case "$TYRUM_NODE_LABEL" in
quits) echo "no display"; exit 3 ;;
fades) echo "up for a moment"; sleep 0.7; exit 7 ;;
stubborn) trap 'echo asked to end' TERM ;;
hungry) head -c 400m /dev/zero | tail >/dev/null || exit 9 ;;
mute) exec sleep 3600 ;;
talks) i=0; while [ $i -lt 300 ]; do echo "line $i   "; echo; i=$((i+1)); done; echo "tyrum-token.v1.secret.part" ;;
esac
httpd -p 6080 -h /www
nc -ll -p 5900 -e /bin/greet &
while :; do sleep 0.2; done
"""
GREET = "#!/bin/busybox sh\nprintf 'RFB 003.008\\n'\nsleep 0.1\n"
SDK_LEAKS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
APPLETS = ("sh", "id", "echo", "sleep", "head", "tail", "httpd", "nc", "printf", "cat", "touch", "ls")


def busybox() -> str:
    """The static busybox of Debian's package, installed when missing and this is root."""
    found = shutil.which("busybox")
    if found is None:
        subprocess.run(["apt-get", "install", "-y", "-q", "busybox-static"], check=False, capture_output=True)
        found = shutil.which("busybox")
    if found is None:
        pytest.skip("no static busybox: apt-get install busybox-static")
    return found


def sandbox_archive() -> bytes:
    """The root file system of the test image, as a tar."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:

        def add(name: str, content: bytes, mode: int = 0o755) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))

        for directory in ("bin", "etc", "www", "tmp", "run", "var", "var/tmp", "var/lib"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        add("bin/busybox", Path(busybox()).read_bytes())
        for applet in APPLETS:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
        add("bin/desktop", DESKTOP.encode())
        add("bin/greet", GREET.encode())
        add("etc/passwd", b"root:x:0:0::/:/bin/sh\nagent:x:1234:1235::/:/bin/sh\n", 0o644)
        add("www/vnc.html", b"<html>noVNC</html>", 0o644)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.APIClient]:
    """The real engine."""
    try:
        client = docker.APIClient(version="auto", timeout=60)
    except docker.errors.DockerException:
        pytest.skip("no Docker engine answers")
    yield client
    client.close()


@pytest.fixture(scope="session")
def make_image(engine: docker.APIClient) -> Iterator[Callable[..., str]]:
    """Makes an image of the test root file system with the given Dockerfile instructions; removed at the
    end.
    """
    made: list[str] = []
    archive = sandbox_archive()

    def make(*changes: str) -> str:
        repository = f"activities-test-{uuid4().hex[:12]}"
        made.append(f"{repository}:1")
        engine.import_image_from_data(archive, repository=repository, tag="1", changes=list(changes))
        return made[-1]

    yield make
    for image in made:
        # One that could not be made is not there.
        with contextlib.suppress(docker.errors.ImageNotFound):
            engine.remove_image(image, force=True)


@pytest.fixture(scope="session")
def image(make_image: Callable[..., str]) -> str:
    """A sandbox image that names no user."""
    return make_image('CMD ["/bin/desktop"]', "ENV PATH=/bin")


@pytest.fixture(scope="session")
def host_id(engine: docker.APIClient) -> Iterator[str]:
    """A host of this test session alone; its network is removed at the end."""
    host = f"test-{uuid4().hex[:12]}"
    yield host
    for network in engine.networks(filters={"label": f"{LABEL_HOST}={host}"}):
        engine.remove_network(network["Id"])


@pytest.fixture(autouse=True)
def reaper(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test leaves behind with its host's label goes."""
    yield
    if "host_id" not in request.fixturenames:
        return
    client, host = request.getfixturevalue("engine"), request.getfixturevalue("host_id")
    for left in client.containers(all=True, filters={"label": f"{LABEL_HOST}={host}"}):
        try:
            client.remove_container(left["Id"], force=True, v=True)
        except docker.errors.APIError as error:
            if error.status_code not in (404, 409):
                raise


@pytest.fixture
def sdk_leaks() -> Iterator[None]:
    """For tests of an engine that is away: the SDK leaves the socket it could not connect to the garbage
    collector.

    Goes with `SDK_LEAKS`, so that the warning about it stays within the test.
    """
    yield
    gc.collect()


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    """A gateway that answers `GET /nodes/self` as told."""
    with FakeGateway() as server:
        yield server


@pytest.fixture
def config(tmp_path: Path, host_id: str, gateway: FakeGateway) -> HostConfig:
    """The host's configuration, with a state directory of its own."""
    return HostConfig(
        host_id=host_id,
        state_dir=tmp_path / "state",
        gateway_url=gateway.url,
        gateway_ws_url="ws://host.containers.internal:8788/ws",
        network=f"net-{host_id}",
        installation="this-installation",
        pairing_seconds=60,
    )


@pytest.fixture
def host(config: HostConfig) -> Iterator[DockerHostActivities]:
    """The activities under test."""
    activities = DockerHostActivities(config)
    yield activities
    activities.close()


class Desk:
    """One environment on the host under test, and its steps as a workflow would call them."""

    def __init__(self, host: DockerHostActivities, image: str, host_id: str, state_dir: Path) -> None:
        self.host = host
        self.id = new_environment_id()
        self.spec = EnvironmentSpec(
            environment_id=self.id,
            host_id=host_id,
            image_ref=image,
            limits=Limits(cpus=1, memory_mb=128, pids=64, shm_mb=16),
        )
        self.home = state_dir / "desktop-environments" / self.id
        self.env = ActivityEnvironment()

    def run(self, step: Callable[[Any], Any], request: Any) -> Any:
        """Run one activity to its end."""
        return ActivityEnvironment().run(step, request)

    def prepare(self, generation: int = 1, rotate: bool = False) -> NodeToken:
        """Identity and token."""
        request = PrepareIdentity(environment_id=self.id, generation=generation, rotate=rotate)
        self.run(self.host.prepare_identity, request)
        minting = MintNodeToken(environment_id=self.id, generation=generation, ttl_seconds=3600)
        token = self.run(self.host.mint_node_token, minting)
        assert isinstance(token, NodeToken)
        return token

    def start(self, generation: int = 1, *, adopt_only: bool = False, **spec: Any) -> ContainerStarted:
        """Container of this generation; identity and token first, unless it is only adopted."""
        if not adopt_only:
            self.prepare(generation)
        request = StartContainer(
            spec=self.spec.model_copy(update=spec), generation=generation, adopt_only=adopt_only
        )
        started = self.run(self.host.start_container, request)
        assert isinstance(started, ContainerStarted)
        return started

    def pairing(self, started: ContainerStarted, generation: int = 1) -> AwaitNodePairing:
        """The request that goes with a started container."""
        return AwaitNodePairing(
            environment_id=self.id,
            generation=generation,
            container_id=started.container_id,
            rfb_port=started.rfb_port,
            novnc_port=started.novnc_port,
        )

    def wait_for_pairing(self, started: ContainerStarted, generation: int = 1) -> NodePaired:
        """Until it is proven ready."""
        paired = self.run(self.host.await_node_pairing, self.pairing(started, generation))
        assert isinstance(paired, NodePaired)
        return paired


@pytest.fixture
def make_desk(host: DockerHostActivities, image: str, host_id: str, config: HostConfig) -> Callable[[], Desk]:
    """Makes fresh environments."""
    return lambda: Desk(host, image, host_id, config.state_dir)


@pytest.fixture
def desk(make_desk: Callable[[], Desk]) -> Desk:
    """A fresh environment."""
    return make_desk()
