"""Known vulnerabilities of the pinned packages, as far as an advisory service answers: `make audit`.

pip-audit looks up every pin of the requirement files. Where the index serves no advisories, it finds none and says so
as if all were well; here that is told apart. Arguments are handed on to it, such as `--ignore-vuln ID` or `-s osv`.

Exit code 1 where a vulnerability is known; 0 where none is, and where it cannot be told.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = ("requirements/uv.txt", "requirements/dev.txt")
"""What `requirements/runtime.txt` pins, `dev.txt` pins too."""
SECONDS = 300
_REASON_CHARS = 160


def main(arguments: Sequence[str]) -> int:
    """Audit; the exit code."""
    report = look_up(arguments)
    if isinstance(report, str):
        print(f"dependencies not audited: {report}")
        return 0
    lines, code = verdict(report)
    print("\n".join(lines))
    return code


def look_up(arguments: Sequence[str]) -> list[dict[str, Any]] | str:
    """What pip-audit found of each package, or why it found nothing out."""
    files = [part for name in FILES for part in ("-r", name)]
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", *files]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15", *arguments]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
        report: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
        return report
    except subprocess.TimeoutExpired:
        return f"no answer within {SECONDS} s"
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["pip-audit says nothing"])[-1]
        return last[:_REASON_CHARS]


def verdict(report: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """What to say of a report, and the exit code."""
    unknown = [found["name"] for found in report if "skip_reason" in found]
    known = len(report) - len(unknown)
    if not known:
        return [f"dependencies not audited: no advisories are served for any of {len(report)} packages"], 0
    lines = [
        f"{found['name']} {found['version']}: {flaw['id']}{_mended(flaw)}"
        for found in report
        for flaw in found.get("vulns", [])
    ]
    flaws = len(lines)
    lines.append(f"{known} packages audited, {flaws} known vulnerabilities")
    if unknown:
        lines.append(f"not audited, no advisories served: {', '.join(sorted(unknown))}")
    return lines, 1 if flaws else 0


def _mended(flaw: dict[str, Any]) -> str:
    versions = flaw.get("fix_versions") or []
    return f", mended in {', '.join(versions)}" if versions else ", not mended yet"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
