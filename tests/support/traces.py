"""What test runs have left on this machine: `python -m tests.support.traces`; exit code 1 when there is anything.

For a machine on which no tests run now: what a run that is under way has made is listed as well.
"""

import re
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import docker

from models.identifiers import LABEL_HOST

IMAGES = re.compile(
    r"activities-test-|trouble-|foreign-desktop-test:|desktop-setup-test:|127\.0\.0\.1:\d+/|<none>"
)
"""Names the tests give to images; one without a name was replaced by a build, or taken from a container that ran."""
HOSTS = re.compile(r"test-[0-9a-f]{12}$|chaos-[0-9a-f]{12}$")
"""Host ids of tests that bring a network of their own."""
FOLDERS = ("desktop-pg-*", "desktop-chaos-*", "trouble-relay-*", "relay*", "hung*", "dockerd-*")
"""What tests make in the folder for temporary files, pytest's own folder aside."""


def found() -> list[str]:
    """One line for each thing that is left. Raises: docker.errors.DockerException."""
    with closing(docker.from_env(timeout=60)) as engine:
        lines = [
            f"container {container.name} of host {container.labels[LABEL_HOST]}"
            for container in engine.containers.list(
                all=True, filters={"label": LABEL_HOST}, ignore_removed=True
            )
            if HOSTS.match(container.labels[LABEL_HOST])
        ]
        lines += [
            f"network {network.name}"
            for network in engine.networks.list(filters={"label": LABEL_HOST})
            if HOSTS.match(network.attrs["Labels"][LABEL_HOST])
        ]
        lines += [
            f"image {name} ({image.short_id})"
            for image in engine.images.list()
            for name in image.tags or ["<none>"]
            if IMAGES.match(name)
        ]
    temporary = {Path(tempfile.gettempdir()), Path("/tmp")}
    lines += [f"folder {path}" for root in temporary for name in FOLDERS for path in root.glob(name)]
    return sorted(lines)


if __name__ == "__main__":
    left = found()
    print("\n".join(left) or "nothing is left")
    sys.exit(1 if left else 0)
