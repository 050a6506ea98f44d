"""Making, finding and removing an environment's container: idempotent, fenced, never touching what is not
ours.
"""

import logging
import threading
import time

from docker.errors import APIError, NotFound
from docker.types import LogConfig
from temporalio.exceptions import ApplicationError

from activities.container_spec import (
    NETWORK_OPTIONS,
    NOVNC_PORT,
    RFB_PORT,
    HostConfig,
    Plan,
    container_user,
    labels,
    plan,
    refuse_open_network,
)
from activities.credentials import read_record
from activities.engine import DOCKER_ERRORS, Engine, Inspection, docker_failure, readable, timed_out
from activities.failures import failure
from activities.guards import Guards
from activities.hostfiles import EnvironmentFiles, give_to
from activities.image_users import numeric_user, user_in_image
from activities.images import image_user, inspect_image
from activities.inspection import exited, generation_of, is_ours, published_port
from activities.logs import log_tail
from activities.steps import Step
from models.errors import ErrorCode
from models.identifiers import LABEL_HOST, container_name
from models.messages import (
    ContainerRemoved,
    ContainerStarted,
    EnvironmentSpec,
    RemoveContainer,
    StartContainer,
)

GONE_SECONDS = 30
"""How long a container that Docker is removing may take to be gone."""

_PHASE = "start_container"

log = logging.getLogger(__name__)


class Containers:
    """The containers of one host. Every method may be called from any thread; callers hold the environment's
    lock.
    """

    def __init__(self, engine: Engine, config: HostConfig, guards: Guards) -> None:
        self._engine = engine
        self._config = config
        self._guards = guards
        self._users: dict[tuple[str, str], tuple[int, int]] = {}
        self._network_lock = threading.Lock()
        self._network_known = False

    def find(self, environment_id: str) -> Inspection | None:
        """The environment's container where this host made it; None for no container, and for a stranger's.

        Raises:
            DOCKER_ERRORS: the engine does not answer.
        """
        found = self._engine.inspect(container_name(environment_id))
        return found if found is not None and is_ours(found, self._config.host_id, environment_id) else None

    def start(self, request: StartContainer, files: EnvironmentFiles, step: Step) -> ContainerStarted:
        """Have the container of this generation running, as `activities.interface` says.

        Raises:
            ApplicationError: see `activities.interface`.
        """
        spec, generation = request.spec, request.generation
        try:
            there = self._engine.inspect(container_name(spec.environment_id))
            if there is not None:
                self._refuse_stranger(there, spec.environment_id, generation)
            # One that was made and never started is half-done: it is made again.
            half_done = there is not None and there["State"].get("Status") == "created"
            if there is not None and generation_of(there) == generation and not half_done:
                return self._take_over(there, request)
            if request.adopt_only:
                message = f"no container of generation {generation} is left to take over"
                raise failure(ErrorCode.SANDBOX_EXITED, message, phase=_PHASE, generation=generation)
            self._guards.refuse_gone(spec.environment_id, generation, _PHASE)
            self._guards.refuse_fenced(spec.environment_id, generation, _PHASE)
            if there is not None:
                step.progress = f"removing generation {generation_of(there)}"
                self.remove_inspected(there, grace_seconds=1)
            step.check()
            return self._make(request, files, step)
        except DOCKER_ERRORS as error:
            raise self._failure(error, spec.environment_id, _PHASE, generation) from error

    def remove(self, request: RemoveContainer) -> ContainerRemoved:
        """Have no container of this generation or an older one.

        Raises:
            ApplicationError: `docker_unavailable`, or `internal` when Docker cannot remove it.
        """
        try:
            there = self.find(request.environment_id)
            if there is None or generation_of(there) > request.generation:
                return ContainerRemoved()
            return self.remove_inspected(there, request.grace_seconds)
        except DOCKER_ERRORS as error:
            environment_id, generation = request.environment_id, request.generation
            raise self._failure(error, environment_id, "remove_container", generation) from error

    def remove_inspected(self, container: Inspection, grace_seconds: float) -> ContainerRemoved:
        """End and remove this container; its events are not reported. Raises `DOCKER_ERRORS`."""
        container_id = container["Id"]
        self._guards.expect_removal(container_id)
        if container["State"].get("Running"):
            try:
                self._engine.work.stop(container_id, timeout=max(0, int(grace_seconds)))
            except NotFound:
                return ContainerRemoved(removed=True)
            except APIError as error:
                # Paused, dying, a broken shim: whatever hinders an orderly stop, the forced removal below
                # decides.
                log.info("container %s was not stopped in order: %s", container_id[:12], readable(error))
        ended = self._engine.inspect(container_id)
        lines = log_tail(self._engine, container_id) or []
        self._remove_until_gone(container_id)
        state = (ended or container)["State"]
        never_ran = state.get("Status") == "created"
        return ContainerRemoved(
            removed=True,
            exit_code=None if never_ran else state.get("ExitCode"),
            oom_killed=bool(state.get("OOMKilled")),
            lines=lines,
        )

    def _failure(
        self, error: BaseException, environment_id: str, phase: str, generation: int
    ) -> ApplicationError:
        """What an error of the SDK means. The runtime of one container may hang in an engine that is well: then the
        engine is not to be blamed, nor looked after by whoever reads this.
        """
        if timed_out(error) and self._engine.answers():
            message = (
                f"the Docker engine answers, but not in time about container {container_name(environment_id)}; tried "
                "again until it does. If its runtime hangs, end its containerd-shim or restart the engine"
            )
            return failure(ErrorCode.DOCKER_UNAVAILABLE, message, phase=phase, generation=generation)
        return docker_failure(error, phase, generation)

    def _take_over(self, container: Inspection, request: StartContainer) -> ContainerStarted:
        state, generation = container["State"], request.generation
        if state.get("Paused"):
            message = "the container is paused; a new one is needed"
            raise failure(ErrorCode.SANDBOX_UNHEALTHY, message, phase=_PHASE, generation=generation)
        if not state.get("Running"):
            raise exited(self._engine, container, _PHASE, generation)
        return self._started(container, notes=[], adopted=True)

    def _make(self, request: StartContainer, files: EnvironmentFiles, step: Step) -> ContainerStarted:
        spec, generation = request.spec, request.generation
        image = inspect_image(self._engine, spec.image_ref)
        if image is None:
            message = f"image {spec.image_ref} is no longer on the host"
            raise failure(ErrorCode.START_FAILED, message, phase=_PHASE, generation=generation)
        record = read_record(files)
        whole = files.identity.exists() and files.vnc_password.exists()
        if not whole or record is None or record.generation != generation:
            message = f"identity or token of generation {generation} is not on the host; prepare and mint come first"
            raise failure(ErrorCode.INTERNAL, message, phase=_PHASE, generation=generation)
        self._ensure_network()
        named = image_user(image)
        user = container_user(spec, named)
        ids = self._ids(user, image["Id"], spec, generation)
        planned = plan(self._config, spec, generation, files, user, ids, image_names_user=bool(named))
        step.check()
        container_id = self._create(planned, spec.environment_id)
        try:
            self._give_files(ids, files)
            # Fenced while it was made: whoever set the fence waits for the lock to remove what is here by
            # then.
            self._guards.refuse_fenced(spec.environment_id, generation, _PHASE)
            step.check()
        except BaseException:
            self._discard(container_id)
            raise
        return self._run(container_id, request, planned.notes)

    def _run(self, container_id: str, request: StartContainer, notes: list[str]) -> ContainerStarted:
        try:
            self._engine.work.start(container_id)
        except APIError:
            # The network may have been removed by hand since it was looked up.
            self._network_known = False
            self._discard(container_id)
            raise
        running = self._engine.inspect(container_id)
        if running is None or not running["State"].get("Running"):
            raise exited(self._engine, running, _PHASE, request.generation)
        return self._started(running, notes, adopted=False)

    def _create(self, planned: Plan, environment_id: str) -> str:
        client = self._engine.work
        host = dict(planned.host_arguments)
        rotation = host.pop("log_config")
        host_config = client.create_host_config(
            log_config=LogConfig(type=rotation["Type"], config=rotation["Config"]), **host
        )
        name = container_name(environment_id)
        made = client.create_container(name=name, host_config=host_config, **planned.arguments)
        return str(made["Id"])

    def _discard(self, container_id: str) -> None:
        self._guards.expect_removal(container_id)
        self._remove_until_gone(container_id)

    def _remove_until_gone(self, container_id: str) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            try:
                self._engine.work.remove_container(container_id, v=True, force=True)
            except NotFound:
                return
            except APIError as error:
                # "removal already in progress", a busy mount, a dead container: each passes, or the deadline
                # does. Asked again and not watched for: a removal that fails sends no event.
                if time.monotonic() > deadline:
                    raise
                log.info("container %s is not removed yet: %s", container_id[:12], readable(error))
                time.sleep(0.05)

    def _ensure_network(self) -> None:
        with self._network_lock:
            if self._network_known:
                return
            name = self._config.network
            there = [found for found in self._engine.look.networks(names=[name]) if found["Name"] == name]
            refuse_open_network(there)
            if not there:
                try:
                    self._engine.work.create_network(
                        name,
                        driver="bridge",
                        options=NETWORK_OPTIONS,
                        check_duplicate=True,
                        labels={LABEL_HOST: self._config.host_id},
                    )
                except APIError as error:
                    if error.status_code != 409:
                        raise
            self._network_known = True

    def _ids(self, user: str, image_id: str, spec: EnvironmentSpec, generation: int) -> tuple[int, int]:
        """The numbers behind the container's user; one the image names is looked up once per image."""
        known = numeric_user(user) or self._users.get((image_id, user))
        if known is not None:
            return known
        # The account file is read from a container that never runs; a crash leaves it half-done, to be made again.
        made = self._engine.work.create_container(
            spec.image_ref,
            name=container_name(spec.environment_id),
            labels=labels(self._config, spec, generation),
        )
        try:
            known = user_in_image(self._engine, str(made["Id"]), user)
        finally:
            self._discard(str(made["Id"]))
        self._users[(image_id, user)] = known
        return known

    def _give_files(self, ids: tuple[int, int], files: EnvironmentFiles) -> None:
        files.make_directories()
        for path in (files.runtime_home, files.identity, files.token, files.vnc_password):
            give_to(path, *ids)

    def _started(self, container: Inspection, notes: list[str], *, adopted: bool) -> ContainerStarted:
        return ContainerStarted(
            container_id=container["Id"],
            name=str(container["Name"]).lstrip("/"),
            rfb_port=published_port(container, RFB_PORT),
            novnc_port=published_port(container, NOVNC_PORT),
            adopted=adopted,
            notes=notes,
        )

    def _refuse_stranger(self, container: Inspection, environment_id: str, generation: int) -> None:
        name = container_name(environment_id)
        stranger = not is_ours(container, self._config.host_id, environment_id)
        if stranger:
            message = f"a container named {name} exists that this host did not make; remove or rename it"
        elif generation_of(container) > generation:
            message = f"a container of generation {generation_of(container)} exists; {generation} is over"
        else:
            return
        raise failure(
            ErrorCode.START_FAILED,
            message,
            phase=_PHASE,
            generation=generation,
            non_retryable=True,
            lasting=stranger,
        )
