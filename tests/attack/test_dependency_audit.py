"""`make audit`: what it says of what pip-audit finds, and that silence is not taken for an all-clear."""

import re
from pathlib import Path

import pytest

from scripts import audit_dependencies
from scripts.audit_dependencies import FILES, ROOT, main, verdict

CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"}
FLAWED = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}


def test_no_advisories_at_all_is_no_all_clear() -> None:
    assert verdict([SKIPPED, SKIPPED]) == (
        ["dependencies not audited: no advisories are served for any of 2 packages"],
        0,
    )


def test_a_known_vulnerability_fails() -> None:
    lines, code = verdict([CLEAN, FLAWED, SKIPPED])
    assert code == 1
    assert lines == [
        "c 2: PYSEC-1, mended in 3",
        "2 packages audited, 1 known vulnerabilities",
        "not audited, no advisories served: b",
    ]


def test_all_clear_names_how_many() -> None:
    assert verdict([CLEAN]) == (["1 packages audited, 0 known vulnerabilities"], 0)


def test_a_service_that_is_away_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit_dependencies, "FILES", ("requirements/no-such-file.txt",))
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dependencies not audited: ") and said.count("\n") == 1


def test_what_is_audited_is_pinned_by_hash_and_names_no_index() -> None:
    for name in (*FILES, "requirements/runtime.txt"):
        text = (ROOT / name).read_text()
        pins = re.findall(r"^([a-z0-9.-]+)==\S+ \\$", text, re.MULTILINE)
        assert pins and text.count("--hash=sha256:") >= len(pins), name
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links|^\S+ @ ", text, re.MULTILINE), name


def test_what_runs_is_audited() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^[a-z0-9.-]+==\S+", Path(ROOT, name).read_text(), re.MULTILINE))

    assert pins("requirements/runtime.txt") <= pins("requirements/dev.txt")
