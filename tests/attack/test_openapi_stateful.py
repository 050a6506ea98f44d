"""Operations one after another, along the links of the OpenAPI document: what one answers, the next one asks about."""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, seed
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.core.failures import FailureGroup
from schemathesis.core.transport import Response
from schemathesis.generation.stateful import APIStateMachine
from schemathesis.specs.openapi.checks import use_after_free

from tests.api.stack import BEARER, Stack
from tests.attack.budget import EXAMPLES, SECONDS, SEED, profile
from tests.attack.openapi import REQUEST_SECONDS, AnyCase, is_unavailable, judge, schema_of, shorten

pytestmark = [pytest.mark.timeout(SECONDS), pytest.mark.xdist_group("attack")]

STEPS = 12


@dataclass
class Record:
    """What came of all scenarios together. `gone`: environments that an answer called deleted."""

    scenarios: int = 0
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    gone: set[Any] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


def machine(stack: Stack, record: Record) -> type[APIStateMachine]:
    """The operator who does whatever the links allow."""
    schema = schema_of(
        stack.app,
        headers=BEARER,
        generation={"mode": "positive"},
        # Along the document's own links; what could be guessed beside them is mostly ids that nobody has.
        phases={"stateful": {"inference": {"algorithms": []}}},
    )
    base: Any = schema.exclude(path_regex="^/(audit|pairings|nodes)").as_state_machine()

    class Operator(base):  # type: ignore[misc] # made by schemathesis at run time
        def setup(self) -> None:
            record.scenarios += 1

        def before_call(self, case: AnyCase) -> None:
            shorten(case)
            if isinstance(case.body, dict) and case.operation.label == "POST /desktop-environments":
                case.body["host_id"] = stack.host_id
                case.body.pop("limits", None)
                case.body.pop("image_ref", None)

        def get_call_kwargs(self, case: AnyCase) -> dict[str, Any]:
            return {"base_url": stack.url, "timeout": REQUEST_SECONDS}

        def validate_response(self, response: Response, case: AnyCase, **_: Any) -> None:
            record.answers[case.operation.label, response.status_code] += 1
            try:
                # A delete is accepted before it is done, and a timeline outlives its environment: judged below instead.
                judge(case, response, stack.url, use_after_free, recorder=self.recorder)
            except FailureGroup as found:
                record.failures.append(f"{case.operation.label}: {found}")
            environment_id = (case.path_parameters or {}).get("environment_id")
            absent = response.status_code in (400, 404) or case.path.endswith("/timeline")
            absent = absent or is_unavailable(response)
            if environment_id in record.gone and not absent:
                record.failures.append(f"{case.operation.label}: {response.status_code} of one that is gone")
            if case.method == "DELETE" and response.status_code in (200, 202) and response.json()["deleted"]:
                record.gone.add(environment_id)

    made: type[APIStateMachine] = Operator
    return made


def run(operator: type[APIStateMachine], record: Record) -> None:
    """Scenarios until there are enough, or one has failed."""
    for number in range(4 * EXAMPLES):
        left = EXAMPLES - record.scenarios
        if left <= 0 or record.failures:
            return
        settings = profile(left, phases=[Phase.generate], stateful_step_count=STEPS)
        try:
            seed(SEED + number)(operator).run(settings=settings)
        except FlakyStrategyDefinition:
            # A real server takes its own time: the same steps led elsewhere. On from another seed.
            continue


async def test_chains_of_operations(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    record = Record()
    with caplog.at_level(logging.ERROR):
        await asyncio.to_thread(run, machine(stack, record), record)
    assert not record.failures, "\n\n".join(record.failures)
    assert not [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR]
    assert (await stack.http.get("/readyz")).status_code == 200
    # Nothing is attacked where everything is refused at the door.
    reached = {label for label, status in record.answers if status < 400}
    assert len(reached) >= 8, record.answers


async def test_links_lead_to_operations_and_their_parameters(stack: Stack) -> None:
    found = {
        operation["operationId"]: operation
        for path in stack.app.openapi()["paths"].values()
        for operation in path.values()
    }
    links = [
        (name, link)
        for operation in found.values()
        for answer in operation["responses"].values()
        for name, link in answer.get("links", {}).items()
    ]
    assert len(links) >= 40
    for name, link in links:
        target = found[link["operationId"]]
        assert link["parameters"].keys() <= {each["name"] for each in target["parameters"]}, name
