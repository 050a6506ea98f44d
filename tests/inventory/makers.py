"""Records as the workflows would send them."""

from datetime import datetime, timedelta
from uuid import uuid4

from sqlalchemy import Engine

from inventory import environments
from inventory.engine import writing
from models.errors import ErrorCode
from models.lifecycle import Status
from models.messages import EnvironmentRecord, EnvironmentSpec, LastError, TimelineEntry


def spec(environment_id: str | None = None, **fields: object) -> EnvironmentSpec:
    """A spec on host `host-1`."""
    known = {"host_id": "host-1", "image_ref": "desktop-sandbox:dev", "label": "research"}
    return EnvironmentSpec.model_validate(known | {"environment_id": environment_id or str(uuid4())} | fields)


def record(
    of: EnvironmentSpec, revision: int, at: datetime, status: Status = Status.RUNNING, **fields: object
) -> EnvironmentRecord:
    """A record of generation 1 with noVNC at port 32001, `revision` seconds after `at`."""
    known = {
        "spec": of,
        "status": status,
        "desired_running": True,
        "generation": 1,
        "revision": revision,
        "novnc_port": 32001,
        "rfb_port": 32002,
        "phases": {"rfb": 130.5},
        "at": at + timedelta(seconds=revision),
    }
    return EnvironmentRecord.model_validate(known | fields)


def entry(sequence: int, at: datetime, **fields: object) -> TimelineEntry:
    """A timeline entry."""
    known = {"sequence": sequence, "at": at, "kind": "status", "name": "running", "status": Status.RUNNING}
    return TimelineEntry.model_validate(known | fields)


def error(at: datetime, lines: list[str]) -> LastError:
    """A recorded error with a log tail."""
    return LastError(
        code=ErrorCode.SANDBOX_EXITED,
        message="exited with 3",
        phase="running",
        at=at,
        exit_code=3,
        log_tail=lines,
    )


def write(engine: Engine, *records: EnvironmentRecord) -> list[bool]:
    """Record each in a transaction of its own."""
    written = []
    for one in records:
        with writing(engine) as session:
            written.append(environments.record(session, one, one.at))
    return written
