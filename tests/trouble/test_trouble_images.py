"""Images that cannot work, and crash loops: clear codes, growing back-off, an end (issue 3, point 2)."""

from itertools import pairwise
from typing import Any

import pytest

from activities import pairing
from tests.trouble.field import Field, within
from tests.trouble.images import BOOT, Images, awaiting, give
from workflows import policies

pytestmark = [pytest.mark.e2e, pytest.mark.docker, pytest.mark.xdist_group("lost-and-broken")]


def test_what_repetition_cannot_mend(field: Field, bad_images: Images, no_sandbox: str) -> None:
    """One attempt, a clear code; a crash loop ends beside them."""
    images = {
        "dies after running": bad_images.variant(f"({awaiting('die')}; kill -9 -1) & exec {BOOT}"),
        "missing": "127.0.0.1:9/there-is-none:1",
        "other platform": bad_images.foreign(),
        "other program": bad_images.variant("exec /no/such/program"),
        "crash loop": bad_images.variant("echo no luck; exit 7"),
    }
    made = {name: field.create(image_ref=image) for name, image in images.items()}
    # First, while its back-off lasts.
    check_crash_loop(field, made["crash loop"])
    for name, code in (("missing", "image_not_found"), ("other platform", "image_mismatch")):
        check_lasting(field, made[name], code, attempts=1)
        assert field.show(made[name])["generation"] == 1
    check_dies_after_running(field, made["dies after running"])
    field.until(no_sandbox, pairing.UNDECLARED_SECONDS + 60, status="error")
    check_lasting(field, no_sandbox, "image_mismatch", attempts=1)
    assert "EXPOSE" in field.show(no_sandbox)["last_error"]["message"]
    # A shell that says 127 may be any program's fault: it is repeated, and ends as a crash loop does.
    check_lasting(field, made["other program"], "sandbox_exited", attempts=policies.RESTART_ATTEMPTS + 1)


def check_dies_after_running(field: Field, environment_id: str) -> None:
    """Between its deaths it runs; its error stays in the timeline, and its restarts are counted."""
    for life in (1, 2):
        field.until(environment_id, 60, status="running", generation=life)
        give("die", field.engine, environment_id)
        field.until(environment_id, 60, restarts=life)
    # The record comes a moment after.
    within(lambda: len(field.errors(environment_id)) == 2, "both deaths in the timeline")
    names = [entry["name"] for entry in field.timeline(environment_id)]
    assert names.count("sandbox_exited") == 2 and names.count("running") >= 2, names
    seen = field.show(environment_id)
    assert seen["restarts"] >= 2 and seen["generation"] >= 2
    assert field.settle(environment_id, "stop")["status"] == "stopped"
    field.check_agreement(environment_id, "stopped")


def check_crash_loop(field: Field, environment_id: str) -> None:
    """Back-off doubles, is shown, and ends in an error that stays until an operator acts."""
    seen = within(
        lambda: (seen := field.show(environment_id))["restarts"] >= 3 and seen["next_retry_at"] and seen,
        "a restart",
    )
    assert (seen["status"], seen["recovery"]) == ("error", "scheduled")
    shown = field.stack.desktopctl("show", environment_id)
    assert shown["restarts"] >= 3
    field.until(environment_id, 120, recovery="operator")
    seen = check_lasting(field, environment_id, "sandbox_exited", attempts=policies.RESTART_ATTEMPTS + 1)
    assert (seen["restarts"], seen["next_retry_at"]) == (policies.RESTART_ATTEMPTS, None)
    waits = back_offs(field, environment_id)
    assert len(waits) == policies.RESTART_ATTEMPTS
    assert all(later == 2 * before for before, later in pairwise(waits)), waits
    errors = field.errors(environment_id)
    assert all(error["detail"]["exit_code"] == 7 for error in errors)
    assert all("no luck" in error["detail"]["log_tail"] for error in errors)
    logs = f"/desktop-environments/{environment_id}/logs"
    within(lambda: "no luck" in field.stack.call("GET", logs).json()["logs"], "its log recorded")
    # An operator's start begins anew.
    field.command(environment_id, "start")
    within(lambda: len(back_offs(field, environment_id)) > len(waits), "a restart")
    assert back_offs(field, environment_id)[len(waits)] == waits[0]


def back_offs(field: Field, environment_id: str) -> list[float]:
    """The seconds waited before each restart, by the timeline."""
    entries = field.timeline(environment_id)
    return [float(entry["message"].split()[1]) for entry in entries if entry["name"] == "retry_scheduled"]


def check_lasting(field: Field, environment_id: str, code: str, *, attempts: int) -> dict[str, Any]:
    """An error of this code that stays, after so many attempts."""
    seen = field.until(environment_id, 120, settled=True, status="error")
    assert (seen["recovery"], seen["last_error"]["code"], seen["next_retry_at"]) == (
        "operator",
        code,
        None,
    ), seen
    assert [error["name"] for error in field.errors(environment_id)] == [code] * attempts
    assert field.stack.containers(environment_id) == []
    return seen
