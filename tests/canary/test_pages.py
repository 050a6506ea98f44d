"""Two pages name a test for each promise: every one of them is there."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECURITY, RELIABILITY = ROOT / "docs" / "security.md", ROOT / "docs" / "reliability.md"
QUOTED = re.compile(r"`([^`\s]+)`")


def functions() -> dict[str, set[str]]:
    """Paths of the files each test function is in, by its name."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found[node.name].add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(
    ("page", "least"), [(SECURITY, 100), (RELIABILITY, 40)], ids=["security", "reliability"]
)
def test_every_test_that_is_named_exists(page: Path, least: int) -> None:
    known, missing = functions(), []
    quoted = QUOTED.findall(page.read_text(encoding="utf-8"))
    named = [name for name in quoted if name.startswith(("test_", "tests/"))]
    assert len(named) > least
    for name in named:
        file, _, function = name.rpartition("::")
        if not file and name.startswith("tests/"):
            there = (ROOT / name).exists()
        elif file:
            there = file in known[function]
        else:
            there = len(known[name]) == 1
        if not there:
            missing.append(name)
    assert not missing, missing


@pytest.mark.parametrize("page", [SECURITY, RELIABILITY], ids=["security", "reliability"])
def test_nothing_is_left_to_be_filled_in(page: Path) -> None:
    assert "@@" not in page.read_text(encoding="utf-8")


def test_every_row_names_a_test() -> None:
    text = SECURITY.read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    promising = [s for s in sections if re.match(r"[1-6]\. ", s)]
    assert len(promising) == 6
    promising.append(RELIABILITY.read_text(encoding="utf-8"))
    for section in promising:
        for table in re.findall(r"^\| promise \|.*\n\|[-|]+\n((?:\|.*\n)+)", section, flags=re.MULTILINE):
            for row in table.splitlines():
                assert re.search(r"`(test_|tests/)[^`]+` \|$", row.strip()), row
