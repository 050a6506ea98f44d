"""The environment workflow's state: everything continue-as-new has to carry."""

from datetime import datetime
from typing import Any

from pydantic import Field, ValidationError

from models import messages as m
from models.errors import ErrorCode
from models.lifecycle import Recovery, Situation, Status, is_settled
from workflows.inbox import InboxItem

TIMELINE_KEPT = 100
"""Entries the workflow itself keeps for query `timeline`; the inventory keeps all."""
REQUEST_IDS_KEPT = 100
"""Request ids remembered: a repeated request is carried out once, and `await_settled` knows what was taken in."""


Credentials = m.RegisterNodeToken | m.RevokeCredentials
"""What can go with a record: a token that lives from then on, or all that ends."""


class SituationRecord(m.Message):
    """A `Situation` as JSON."""

    status: Status = Status.PENDING
    desired_running: bool = False
    wipe: bool = False
    recovery: Recovery = Recovery.NONE
    host_available: bool = True
    debris: bool = False


class EnvironmentState(m.Message):
    """All of an environment.

    Attributes:
        revision: of the projection; rises with each record. sequence: of the timeline; rises with each entry.
        container: of `generation`, as long as it is believed to exist.
        failures: times of failed starts and lost sandboxes inside the restart window.
        unrecorded: timeline entries the inventory does not have yet.
        node_lost_at: when the node went away while the container ran on.
        setbacks: failures in a row of operations other than starts. not_before: when the next may be tried.
        projection_failures: records in a row that the inventory refused. projection_retry_at: when the next is offered.
        host_event_at: of the newest word from the host's workflow; an older one comes too late.
        deleted: the environment is a tombstone. erased: nothing of it is left on the host either.
    """

    spec: m.EnvironmentSpec
    situation: SituationRecord = Field(default_factory=SituationRecord)
    generation: int = 0
    revision: int = 0
    sequence: int = 0
    device_id: str | None = None
    rotate_identity: bool = False
    token: m.NodeToken | None = None
    container: m.ContainerStarted | None = None
    last_error: m.LastError | None = None
    host_error: m.LastError | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    failures: list[datetime] = Field(default_factory=list)
    restarts: int = 0
    next_retry_at: datetime | None = None
    node_lost_at: datetime | None = None
    logs: list[str] | None = None
    timeline: list[m.TimelineEntry] = Field(default_factory=list)
    unrecorded: list[m.TimelineEntry] = Field(default_factory=list)
    inbox: list[InboxItem] = Field(default_factory=list)
    request_ids: list[str] = Field(default_factory=list)
    created_at: datetime = m.EPOCH
    updated_at: datetime = m.EPOCH
    deleted: bool = False
    erased: bool = False
    setbacks: int = 0
    not_before: datetime | None = None
    projection_failures: int = 0
    projection_retry_at: datetime | None = None
    host_event_at: datetime = m.EPOCH

    @property
    def now_situation(self) -> Situation:
        """The situation, as the transition function takes it."""
        return Situation(**self.situation.model_dump())

    def size(self) -> int:
        """Bytes of JSON, at least: of what can grow without bound while the inventory is away."""
        return sum(len(part.model_dump_json()) for part in (*self.unrecorded, *self.inbox))

    def view(self, *, operation: str | None, phase: str | None) -> m.EnvironmentView:
        """What query `status` answers."""
        situation = self.situation
        running = situation.status is Status.RUNNING and self.container is not None
        return m.EnvironmentView(
            spec=self.spec,
            status=situation.status,
            desired_running=situation.desired_running,
            generation=self.generation,
            node_id=self.device_id,
            takeover_available=running,
            rfb_port=self.container.rfb_port if running and self.container else None,
            novnc_port=self.container.novnc_port if running and self.container else None,
            last_error=self.last_error,
            settled=operation is None and is_settled(self.now_situation),
            recovery=situation.recovery,
            restarts=self.restarts,
            next_retry_at=self.next_retry_at,
            operation=operation,
            phase=phase,
            phases=self.phases,
            created_at=self.created_at,
            updated_at=self.updated_at,
            deleted=self.deleted,
        )

    def record(self, at: datetime, credentials: Credentials | None = None) -> m.EnvironmentRecord:
        """The projection to write now, with credentials to register or to end; takes the next revision and the entries
        not recorded yet.
        """
        # Above what an earlier run of this workflow id recorded, too: a reset by hand starts the count anew.
        self.revision = max(self.revision + 1, int(at.timestamp() * 1000))
        view = self.view(operation=None, phase=None)
        return m.EnvironmentRecord(
            **view.model_dump(
                include=set(m.EnvironmentRecord.model_fields) & set(m.EnvironmentView.model_fields)
            ),
            revision=self.revision,
            logs=self.logs,
            at=at,
            entries=self.unrecorded,
            registers=credentials if isinstance(credentials, m.RegisterNodeToken) else None,
            revokes=credentials if isinstance(credentials, m.RevokeCredentials) else None,
        )

    def host_trouble(self, at: datetime) -> m.LastError:
        """The error that says why nothing can be done on the host."""
        known = self.host_error or m.LastError(
            code=ErrorCode.HOST_UNREACHABLE, message="the host cannot be reached"
        )
        return known.model_copy(update={"at": at, "generation": self.generation, "phase": "host"})


def read_state(spec: m.EnvironmentSpec, carried: dict[str, Any]) -> tuple[EnvironmentState, str | None]:
    """The state that continue-as-new carried, and what of it could not be read.

    A state that cannot be read must not fail the workflow task for ever: what can be read is kept. Where the situation
    is lost, an operator decides; the generation is found in the inventory again.
    """
    bad: set[str] = set()
    try:
        state = EnvironmentState.model_validate({**carried, "spec": spec})
    except ValidationError as error:
        bad = {str(part["loc"][0]) for part in error.errors(include_url=False, include_input=False)}
        kept = {name: value for name, value in carried.items() if name not in bad}
        state = EnvironmentState.model_validate({**kept, "spec": spec})
    if "situation" in bad or "situation" not in carried:
        bad.add("situation")
        state.situation = SituationRecord(status=Status.ERROR, recovery=Recovery.OPERATOR, debris=True)
    return state, ", ".join(sorted(bad)) or None
