"""A served fake API, and `desktopctl` run against it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from typer.testing import CliRunner, Result

from cli import main
from tests.cli.fake_api import TOKEN, Fake, serving


class Desktopctl(Protocol):
    """Runs one command."""

    def __call__(self, *arguments: str, api_url: str | None = None, **options: Any) -> Result: ...


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as served:
        yield served


@pytest.fixture
def desktopctl(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desktopctl:
    monkeypatch.setenv("DESKTOP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("DESKTOP_ADMIN_TOKEN", TOKEN)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("DESKTOP_API_URL", raising=False)

    def run(*arguments: str, api_url: str | None = None, **options: Any) -> Result:
        # As a script would, `--json` is looked for on the command line.
        monkeypatch.setattr("sys.argv", ["desktopctl", *arguments])
        result = CliRunner().invoke(main.app, ["--api-url", api_url or fake.url, *arguments], **options)
        assert "Traceback" not in result.output
        assert not re.search(TOKEN, result.output), "the token was printed"
        return result

    return run
