"""One plugin configures client, worker and replayer alike: the data converter and the workflow sandbox."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.plugin import SimplePlugin
from temporalio.worker import WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from models.keyring import KeyRing
from workflows.codec import encrypting


class TolerantPayloadConverter(PydanticPayloadConverter):
    """Pydantic JSON, but a payload that cannot be decoded and that nobody expects a type of becomes a `RawValue`.

    Only signal handlers take untyped payloads here. The SDK would drop such a signal with a line in the log, while the
    `temporal` command has said it succeeded; this way it reaches the inbox and is noted in the timeline.
    """

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """Decode each payload by its hint."""
        if type_hints:
            return super().from_payloads(payloads, type_hints)
        values: list[Any] = []
        for payload in payloads:
            try:
                values.extend(super().from_payloads([payload], None))
            except Exception:
                values.append(RawValue(payload))
        return values


data_converter = replace(pydantic_data_converter, payload_converter_class=TolerantPayloadConverter)


def _runner(existing: WorkflowRunner | None) -> WorkflowRunner:
    restrictions = SandboxRestrictions.default.with_passthrough_modules("models", "activities", "workflows")
    return SandboxedWorkflowRunner(restrictions=restrictions)


class ControlPlanePlugin(SimplePlugin):
    """Pass it to `Client.connect(plugins=[…])` and to `Replayer`; workers take it from their client.

    Args:
        ring: keys that payloads are encrypted with; None to leave them readable.
    """

    def __init__(self, ring: KeyRing | None = None) -> None:
        converter = encrypting(data_converter, ring)
        super().__init__("desktop-environments", data_converter=converter, workflow_runner=_runner)
