"""Everything the project needs beside its Python environment: `python -m scripts.setup [PART…]`."""

import argparse
import sys
from collections.abc import Callable, Sequence

from docker.errors import DockerException
from requests import RequestException

from scripts import chromium, engine, postgresql, sandbox_image, temporal
from scripts.console import SetupError, say, step

PARTS: dict[str, tuple[str, Callable[[], object]]] = {
    "docker": ("Docker Engine", engine.ensure),
    "temporal": ("Temporal", temporal.ensure),
    "image": ("Sandbox image", sandbox_image.ensure),
    "postgresql": ("PostgreSQL, for the tests", postgresql.ensure),
    "chromium": ("Chromium, for the tests", chromium.ensure),
}
"""In the order they build on each other."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Set up the named parts, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts.setup", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    wanted = parser.parse_args(arguments).parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    chosen = [part for name, part in PARTS.items() if name in wanted]
    try:
        # The Makefile has made the Python environment as step 1.
        for number, (title, ensure) in enumerate(chosen, start=2):
            with step(number, len(chosen) + 1, title):
                ensure()
    except (SetupError, DockerException, RequestException, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
