"""The gateway: `/ws`, pairing, presence and dispatch for nodes (`node-protocol.md`).

One `Gateway` per api process is shared by both listeners: `start()` it once the loop runs, `close()` it before the
servers are told to exit.
"""

from api.gateway.credentials import AdminVerifier
from api.gateway.dispatch import Outcome, Task, TaskError
from api.gateway.gateway import Gateway, SelfView
from api.gateway.limits import UVICORN_SETTINGS, Limits
from api.gateway.presence import PresenceListener

__all__ = [
    "UVICORN_SETTINGS",
    "AdminVerifier",
    "Gateway",
    "Limits",
    "Outcome",
    "PresenceListener",
    "SelfView",
    "Task",
    "TaskError",
]
