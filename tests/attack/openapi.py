"""Requests made from the OpenAPI document, sent to the real server, every answer judged (issue 4, point 7)."""

from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import given, seed
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.core.transport import Response
from schemathesis.engine.recorder import ScenarioRecorder
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    positive_data_acceptance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.schemas import OpenApiSchema

from tests.api.stack import BEARER
from tests.attack.budget import SEED, profile

AnyCase = Case[Any]
STREAM = "/desktop-environments/{environment_id}/events"
TAKEOVER = "/desktop-takeover/s/{token}/{path}"
APART = [STREAM, TAKEOVER]
"""An endless answer, and one that is no JSON API: attacked in tests of their own."""

ANYTHING_GOES = frozenset(
    {"healthz", "readyz", "list_hosts", "get_defaults", "list_tokens", "get_host", "revoke_token"}
)
"""Operations of which nothing can be violated: they take no input, or any text."""

DECLARED: list[CheckFunction] = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
"""What holds of an answer that says nothing about the request: it is one the document has."""

LONGEST_WAIT = 2
"""Seconds: what an operator may ask for, 300, is too long for a test."""
REQUEST_SECONDS = 30


def schema_of(app: FastAPI, **config: Any) -> OpenApiSchema:
    """The document of the application as schemathesis reads it, without `APART`.

    Args:
        config: of schemathesis, beside the seed.
    """
    made = SchemathesisConfig.from_dict({"seed": SEED} | config)
    found = schemathesis.openapi.from_dict(deepcopy(app.openapi()), config=made).exclude(path=APART)
    assert isinstance(found, OpenApiSchema)
    return found


def call(case: AnyCase, url: str) -> int:
    """Send one case and judge the answer; its status. Raises `FailureGroup`."""
    shorten(case)
    response = case.call(base_url=url, timeout=REQUEST_SECONDS)
    judge(case, response, url)
    return response.status_code


def judge(
    case: AnyCase,
    response: Response,
    url: str,
    *but: CheckFunction,
    recorder: ScenarioRecorder | None = None,
) -> None:
    """Every check there is, but `positive_data_acceptance` and those named. Raises `FailureGroup`."""
    case.validate_response(
        response,
        checks=DECLARED if is_unavailable(response) else None,
        headers=BEARER,
        transport_kwargs={"base_url": url, "timeout": REQUEST_SECONDS},
        # The grammar of image references, what is printable and strict integers are told in words.
        excluded_checks=[positive_data_acceptance, *but],
        recorder=recorder,
    )


def is_unavailable(response: Response) -> bool:
    """Whether it is the documented answer of a busy machine: a part did not answer in time."""
    if response.status_code != 503:
        return False
    try:
        said = response.json()
    except ValueError:
        return False
    if not isinstance(said, dict):
        return False
    # `/readyz` has a shape of its own; which operation has which is the document's, and checked as `DECLARED`.
    code = {frozenset({"error", "message"}): "error", frozenset({"status", "parts"}): "status"}
    return said.get(code.get(frozenset(said), "")) == "unavailable"


def shorten(case: AnyCase) -> None:
    """Have the server not wait for minutes."""
    query = case.query or {}
    wait = query.get("wait")
    if isinstance(wait, int | float) and not isinstance(wait, bool) and LONGEST_WAIT < wait <= 300:
        query["wait"] = LONGEST_WAIT


def attack(
    app: FastAPI,
    url: str,
    mode: GenerationMode,
    known: Mapping[str, Mapping[str, Any]],
    examples: int,
    statuses: Counter[tuple[str, int]],
) -> Iterator[str]:
    """What is wrong with any operation, as far as so many examples of each find out.

    Args:
        known: path parameters that exist, by operation label. statuses: counts what was answered.
    """
    for operation in operations(app):
        made = partial(operation.as_strategy, generation_mode=mode, headers=BEARER)
        cases = made()
        if operation.label in known:
            cases = st.one_of(cases, made(path_parameters=dict(known[operation.label])))

        @seed(SEED)
        @profile(examples)
        @given(case=cases)
        def one(case: AnyCase) -> None:
            statuses[case.operation.label, call(case, url)] += 1

        try:
            one()
        except FailureGroup as found:
            yield f"{operation.label}: {found}"
        except Unsatisfiable:
            if operation.definition.raw["operationId"] not in ANYTHING_GOES:
                yield f"{operation.label}: no request could be made"


def operations(app: FastAPI) -> list[APIOperation[Any, Any, Any, Any]]:
    """Those of the document that are attacked alike."""
    found = []
    for result in schema_of(app).get_all_operations():
        assert isinstance(result, Ok), result
        found.append(result.ok())
    return found
