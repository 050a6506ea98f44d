"""What the workflows do to credentials by themselves is in the audit too: made, extended, ended."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from sqlalchemy import Engine

from activities.inventory import SqlControlActivities
from inventory import audit, takeover
from inventory.audit import Filters
from inventory.engine import reading, writing
from models import messages as m
from tests.inventory.makers import record, spec
from tests.inventory.test_control_activities import pair


def test_every_end_and_extension_has_its_row(engine: Engine) -> None:
    activities = SqlControlActivities(engine, None)  # type: ignore[arg-type] # asks Temporal nothing here
    now, wanted = datetime.now(UTC), spec()
    environment_id = wanted.environment_id
    activities.record_environment(record(wanted, 1, now, generation=3))
    token = m.NodeToken(
        token_id=str(uuid4()), token_sha256="ab" * 32, issued_at=now, expires_at=now + timedelta(hours=1)
    )

    def new_rows(work: Callable[[], object]) -> list[tuple[str, str, str, int | None]]:
        with reading(engine) as session:
            before = audit.page(session, Filters(), None, 1)
        work()
        with reading(engine) as session:
            after = audit.page(
                session, Filters(), before[0].audit_id if before else 0, 100, oldest_first=True
            )
        assert {row.environment_id for row in after} <= {environment_id}
        return [(row.action, row.actor_kind, row.outcome, row.generation) for row in after]

    def expected(*actions: str) -> list[tuple[str, str, str, int | None]]:
        return [(action, "system", "accepted", 3) for action in actions]

    register = m.RegisterNodeToken(
        environment_id=environment_id, generation=3, device_id="d" * 64, token=token
    )
    assert new_rows(lambda: activities.register_node_token(register)) == expected("node_token.register")
    assert new_rows(lambda: activities.register_node_token(register)) == [], "a repetition changes nothing"
    extend = m.ExtendNodeToken(
        environment_id=environment_id, generation=3, expires_at=now + timedelta(hours=5)
    )
    assert new_rows(lambda: activities.extend_node_token(extend)) == expected("node_token.extend")
    with writing(engine) as session:
        takeover.create(
            session,
            environment_id=environment_id,
            generation=3,
            token_sha256="cd" * 32,
            created_by="ann",
            now=now,
            ttl_seconds=600,
        )
        pair(session, environment_id, now)
    revoke = m.RevokeCredentials(environment_id=environment_id, generation=3, reason="delete", pairing=True)
    ended = expected("node_token.revoke", "takeover.end", "pairing.revoke")
    assert new_rows(lambda: activities.revoke_credentials(revoke)) == ended
    assert new_rows(lambda: activities.revoke_credentials(revoke)) == []
