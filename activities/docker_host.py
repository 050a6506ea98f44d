"""The host activities on a real Docker engine: each method locks, runs its part beside a heartbeat, and
reports.
"""

from collections.abc import Callable
from typing import TypeVar

from temporalio import activity

from activities.container_spec import HostConfig
from activities.containers import Containers
from activities.credentials import mint_node_token
from activities.engine import DOCKER_ERRORS, Engine, docker_failure
from activities.failures import failure
from activities.guards import Guards
from activities.homes import Homes
from activities.host import HostMonitor
from activities.hostfiles import EnvironmentFiles, environment_files, remove_tree
from activities.identity import prepare_identity
from activities.images import ensure_image, ready_image
from activities.inspection import generation_of
from activities.interface import HostActivities
from activities.logs import log_tail
from activities.pairing import NodePairing
from activities.steps import Step, run_step
from activities.temporal_link import ControlPlane
from models import messages as m
from models.errors import ErrorCode

T = TypeVar("T")


class DockerHostActivities(HostActivities):
    """The activities of one runtime host.

    Args:
        config: what this host is configured with.
        control_plane: how the monitor reaches workflows (`temporal_link.TemporalLink` over a client); None
            for a host that runs no monitor.
    """

    def __init__(self, config: HostConfig, control_plane: ControlPlane | None = None) -> None:
        self._config = config
        self._engine = Engine(config.docker_host)
        self._guards = Guards()
        self._containers = Containers(self._engine, config, self._guards)
        self._homes = Homes(config)
        self._control_plane = control_plane

    def close(self) -> None:
        """Close the connections to the engine."""
        self._engine.close()

    @activity.defn(no_thread_cancel_exception=True)
    def ensure_image(self, request: m.EnsureImage) -> m.ImageReady:
        """Takes no lock: a slow pull hinders nothing else, not even this environment's removal."""
        return _run(
            "ensure_image",
            request.generation,
            lambda step: ensure_image(self._engine, request.image_ref, request.generation, step),
        )

    @activity.defn(no_thread_cancel_exception=True)
    def prepare_identity(self, request: m.PrepareIdentity) -> m.Prepared:
        """Files first; Docker has to answer only where the request asks for the image."""
        environment_id, generation = request.environment_id, request.generation

        def work(step: Step) -> m.Prepared:
            files = self._files(environment_id)
            with self._guards.only(environment_id, step):
                self._guards.refuse_gone(environment_id, generation, "prepare_identity")
                identity = prepare_identity(files, generation, request.rotate)
                self._homes.begin(files)
                token = None
                if request.ttl_seconds > 0:
                    token = mint_node_token(files, generation, request.ttl_seconds)
            image = None
            if request.image_ref is not None:
                step.progress = f"looking for image {request.image_ref}"
                image = ready_image(self._engine, request.image_ref, generation)
            return m.Prepared(**identity.model_dump(), token=token, image=image)

        return _run("prepare_identity", generation, work)

    @activity.defn(no_thread_cancel_exception=True)
    def mint_node_token(self, request: m.MintNodeToken) -> m.NodeToken:
        """Files only; Docker need not answer."""
        environment_id, generation = request.environment_id, request.generation

        def work(step: Step) -> m.NodeToken:
            files = self._files(environment_id)
            with self._guards.only(environment_id, step):
                self._guards.refuse_gone(environment_id, generation, "mint_node_token")
                return mint_node_token(files, generation, request.ttl_seconds)

        return _run("mint_node_token", request.generation, work)

    @activity.defn(no_thread_cancel_exception=True)
    def start_container(self, request: m.StartContainer) -> m.ContainerStarted:
        """One that outlives its cancellation is fenced by the removal that follows."""
        environment_id = request.spec.environment_id

        def work(step: Step) -> m.ContainerStarted:
            files = self._files(environment_id)
            with self._guards.only(environment_id, step):
                return self._containers.start(request, files, step)

        return _run("start_container", request.generation, work)

    @activity.defn(no_thread_cancel_exception=True)
    def await_node_pairing(self, request: m.AwaitNodePairing) -> m.NodePaired:
        """Takes no lock: a removal may end what is waited for."""
        files = self._files(request.environment_id)
        waiting = NodePairing(self._engine, self._config, self._guards, files, request)
        return _run("await_node_pairing", request.generation, waiting.wait)

    @activity.defn(no_thread_cancel_exception=True)
    def capture_logs(self, request: m.CaptureLogs) -> m.CapturedLogs:
        """Of any generation when the request's is 0."""

        def work(step: Step) -> m.CapturedLogs:
            try:
                container = self._containers.find(request.environment_id)
                if container is None or request.generation not in (0, generation_of(container)):
                    return m.CapturedLogs(found=False)
                lines = log_tail(self._engine, container["Id"])
            except DOCKER_ERRORS as error:
                raise docker_failure(error, "capture_logs", request.generation) from error
            return m.CapturedLogs(lines=lines or [], found=lines is not None)

        return _run("capture_logs", request.generation, work)

    @activity.defn(no_thread_cancel_exception=True)
    def remove_container(self, request: m.RemoveContainer) -> m.ContainerRemoved:
        """Fences first, so that a start still under way cannot leave a container behind."""
        environment_id = request.environment_id

        def work(step: Step) -> m.ContainerRemoved:
            self._guards.fence(environment_id, request.generation)
            with self._guards.only(environment_id, step):
                return self._containers.remove(request)

        return _run("remove_container", request.generation, work)

    @activity.defn(no_thread_cancel_exception=True)
    def wipe_runtime(self, request: m.WipeRuntime) -> None:
        """Refuses while a container of this generation or an older one is there: it would write on."""
        environment_id, generation = request.environment_id, request.generation

        def work(step: Step) -> None:
            files = self._files(environment_id)
            if request.everything:
                self._guards.mark_gone(environment_id, generation)
            with self._guards.only(environment_id, step):
                if self._newer_or_refused(environment_id, generation):
                    return
                step.progress = "removing files"
                if request.everything:
                    remove_tree(files.home)
                elif files.home.exists():
                    remove_tree(files.runtime_home)
                    files.make_directories()

        _run("wipe_runtime", request.generation, work)

    @activity.defn
    async def monitor_host(self, request: m.MonitorHost) -> None:
        """Runs until it is cancelled or the worker ends."""
        if request.host_id != self._config.host_id or self._control_plane is None:
            message = f"this is host {self._config.host_id}, asked to be {request.host_id}"
            raise failure(ErrorCode.INTERNAL, message, phase="monitor_host", non_retryable=True)
        monitor = HostMonitor(self._engine, self._config, self._guards, self._containers, self._control_plane)
        await monitor.run()

    def _files(self, environment_id: str) -> EnvironmentFiles:
        return environment_files(self._config.state_dir, environment_id)

    def _newer_or_refused(self, environment_id: str, generation: int) -> bool:
        """Whether a newer generation lives, whose files are not to be touched."""
        try:
            container = self._containers.find(environment_id)
        except DOCKER_ERRORS as error:
            raise docker_failure(error, "wipe_runtime", generation) from error
        if container is None:
            return False
        if generation_of(container) > generation:
            return True
        message = f"a container of generation {generation_of(container)} is still there; it is removed first"
        raise failure(ErrorCode.INTERNAL, message, phase="wipe_runtime", generation=generation)


def _run(phase: str, generation: int, work: Callable[[Step], T]) -> T:
    try:
        return run_step(work)
    except OSError as error:
        message = f"{error.strerror or type(error).__name__}: {error.filename or 'on the host'}"
        raise failure(ErrorCode.INTERNAL, message, phase=phase, generation=generation) from error
