"""Links of the OpenAPI document: what an answer's ids are good for, for people and for clients that follow them."""

from typing import Any

_ENVIRONMENT = "$response.body#/environment/environment_id"
_ON_ENVIRONMENT = (
    *("get_environment", "patch_environment", "delete_environment"),
    *("start_environment", "stop_environment", "reset_environment"),
    *("get_environment_logs", "get_environment_timeline", "stream_environment_events"),
    *("create_takeover_session", "list_takeover_sessions", "redirect_to_desktop"),
)
_OF_PATH = "$request.path.environment_id"
_LINKS: dict[tuple[str, str], dict[str, dict[str, str]]] = {
    ("create_environment", "201"): {name: {"environment_id": _ENVIRONMENT} for name in _ON_ENVIRONMENT},
    **{
        (source, status): {name: {"environment_id": _OF_PATH} for name in _ON_ENVIRONMENT}
        for source in ("start_environment", "stop_environment", "reset_environment", "patch_environment")
        for status in ("200", "202")
    },
    # Gone, and yet known: by its timeline.
    ("delete_environment", "200"): {"get_environment_timeline": {"environment_id": _OF_PATH}},
    ("delete_environment", "202"): {
        name: {"environment_id": _OF_PATH} for name in ("get_environment_timeline", "delete_environment")
    },
    ("create_takeover_session", "200"): {
        name: {"environment_id": _OF_PATH, "session_id": "$response.body#/session_id"}
        for name in ("extend_takeover_session", "revoke_takeover_session")
    },
    ("create_token", "201"): {"revoke_token": {"token_id": "$response.body#/token/token_id"}},
    ("list_environments", "200"): {"list_environments": {"cursor": "$response.body#/next_cursor"}},
    ("list_audit", "200"): {"list_audit": {"cursor": "$response.body#/next_cursor"}},
    ("get_environment", "200"): {"get_host": {"host_id": "$response.body#/environment/host_id"}},
}
"""By operation and status: the operations that follow, and where their parameters are in request and answer."""


def add_links(document: dict[str, Any]) -> None:
    """Put the links into a document; those of answers that an operation has not are left out."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                targets = _LINKS.get((operation["operationId"], status), {})
                links = {
                    name: {"operationId": name, "parameters": parameters}
                    for name, parameters in targets.items()
                }
                if links:
                    answer["links"] = links
