"""The real API on a real socket, with Temporal and a fake host, as the API's own tests have it."""

from tests.api.conftest import desk, stack, temporal

__all__ = ["desk", "stack", "temporal"]
