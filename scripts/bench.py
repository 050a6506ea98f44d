"""Lists the benchmarks: `make bench`. A benchmark is a module of the package `benchmarks`."""

import sys

from scripts.machine import ROOT


def main() -> int:
    """Say what there is; returns the exit code."""
    found = sorted(path.stem for path in (ROOT / "benchmarks").glob("[a-z]*.py"))
    if not found:
        print("There are no benchmarks yet; `make bench` is reserved for them and ran nothing.")
        return 0
    print(
        "Benchmarks (`make bench` runs none of them yet; run one with `.venv/bin/python -m benchmarks.NAME`):"
    )
    for name in found:
        print(f"  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
