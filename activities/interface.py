"""The activities as workflows see them: names, arguments, results. Implementations and fakes derive from these.

Workflows import this module and nothing else of the package, so that no workflow reaches Docker or SQL.
"""

from abc import ABC, abstractmethod

from temporalio import activity

from models import messages as m


class HostActivities(ABC):
    """What runs on the runtime host, on task queue `runtime-host:<host_id>` (design sections 2 and 3).

    Every method is idempotent by environment id and generation (design decision 9), runs in a thread, heartbeats and
    can be cancelled. Failures are `temporalio.exceptions.ApplicationError` whose `type` is an
    `models.errors.ErrorCode` and whose details hold one `models.messages.LastError`.
    """

    @activity.defn
    @abstractmethod
    def ensure_image(self, request: m.EnsureImage) -> m.ImageReady:
        """Have the image on the host, pulling it when it is missing; pull progress is in the heartbeat."""

    @activity.defn
    @abstractmethod
    def prepare_identity(self, request: m.PrepareIdentity) -> m.Prepared:
        """Make or read the device identity, and the host directories (protocol section 8.1).

        When asked to, mint the node token and look for the image as well: a start whose image is there needs nothing
        more before its container.
        """

    @activity.defn
    @abstractmethod
    def mint_node_token(self, request: m.MintNodeToken) -> m.NodeToken:
        """Write a fresh token for this generation to the token file and report its hash.

        Part of `prepare_identity`; by itself for workflows of an older version, and for hosts of one.
        """

    @activity.defn
    @abstractmethod
    def start_container(self, request: m.StartContainer) -> m.ContainerStarted:
        """Have the container of this generation running; one of an older generation is removed first."""

    @activity.defn
    @abstractmethod
    def await_node_pairing(self, request: m.AwaitNodePairing) -> m.NodePaired:
        """Wait until RFB, noVNC and the node's pairing are proven, or the container dies (design decision 13)."""

    @activity.defn
    @abstractmethod
    def capture_logs(self, request: m.CaptureLogs) -> m.CapturedLogs:
        """Read the container's log tail now."""

    @activity.defn
    @abstractmethod
    def remove_container(self, request: m.RemoveContainer) -> m.ContainerRemoved:
        """Have no container of this generation or an older one; absent is success."""

    @activity.defn
    @abstractmethod
    def wipe_runtime(self, request: m.WipeRuntime) -> None:
        """Have a clean runtime home, or no host directory at all; absent is success."""

    @activity.defn
    @abstractmethod
    async def monitor_host(self, request: m.MonitorHost) -> None:
        """Watch the Docker engine and its events until the worker ends; the heartbeat is the host's (decision 5)."""


class ControlActivities(ABC):
    """What touches the inventory; short, run on the control worker (design section 3)."""

    @activity.defn
    @abstractmethod
    def record_environment(self, record: m.EnvironmentRecord) -> m.Recorded:
        """Write the projection unless a newer revision is there, the timeline entries that are not, and register or
        end the credentials it names; what is there then.
        """

    @activity.defn
    @abstractmethod
    def record_host(self, record: m.HostRecord) -> None:
        """Write what is known of a host unless a newer revision is there."""

    @activity.defn
    @abstractmethod
    def register_node_token(self, request: m.RegisterNodeToken) -> None:
        """Make this token the environment's only live one; a repetition changes nothing.

        Part of `record_environment`; by itself where the record is refused, and for workflows of an older version.
        """

    @activity.defn
    @abstractmethod
    def extend_node_token(self, request: m.ExtendNodeToken) -> None:
        """Move the expiry of the live token of this generation."""

    @activity.defn
    @abstractmethod
    def revoke_credentials(self, request: m.RevokeCredentials) -> None:
        """End tokens and takeover sessions up to this generation, and the pairing when asked to.

        Part of `record_environment`; by itself where the record is refused, and for workflows of an older version.
        """

    @activity.defn
    @abstractmethod
    async def notify_environments(self, request: m.NotifyEnvironments) -> int:
        """Signal every live environment on a host; returns how many."""
