"""Bodies of the takeover routes; the answer to opening a session is `api.schemas.TakeoverAnswer`."""

from typing import Annotated

from pydantic import BaseModel, Field, StrictBool, StrictInt

from api.bodies import Body
from api.schemas import Answer, Timestamp
from models.tables import TakeoverSessionRow

Ttl = Annotated[StrictInt, Field(ge=10, le=86400, description="Seconds.")]


class TakeoverCreate(Body):
    """What kind of session."""

    view_only: StrictBool = Field(default=False, description="Show the desktop, and drop all input to it.")
    ttl_seconds: Ttl | None = Field(
        default=None, description="Its life; the installation's default otherwise."
    )


class TakeoverExtend(Body):
    """How much longer."""

    ttl_seconds: Ttl | None = Field(
        default=None,
        description="Life from now on, the installation's default otherwise; a session never gets shorter by it.",
    )


class TakeoverSessionOut(BaseModel):
    """A session; what opens it is known to whoever has the link, and to nobody else."""

    session_id: str
    environment_id: str
    generation: int
    view_only: bool
    created_by: str
    created_at: Timestamp
    expires_at: Timestamp
    revoked_at: Timestamp | None

    @classmethod
    def from_row(cls, row: TakeoverSessionRow) -> "TakeoverSessionOut":
        """As recorded."""
        return cls.model_validate(row.model_dump(include=set(cls.model_fields)))


class TakeoverSessionAnswer(Answer):
    """One session."""

    session: TakeoverSessionOut


class TakeoverSessionsAnswer(Answer):
    """The sessions that are neither expired nor revoked, newest first."""

    sessions: list[TakeoverSessionOut]
