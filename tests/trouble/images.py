"""Images that misbehave, most of them one line away from the real sandbox."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from uuid import uuid4

import docker

from models.identifiers import container_name
from tests.activities.conftest import sandbox_archive
from tests.e2e.stack import IMAGE

BOOT = "/usr/bin/python3 -s -E /opt/desktop-sandbox/start.py"


def awaiting(cue: str) -> str:
    """A shell command that ends when the test gives the cue."""
    return f"until [ -e /tmp/{cue} ]; do sleep 0.1; done"


def give(cue: str, engine: docker.DockerClient, environment_id: str) -> None:
    """Give an environment's container its cue; nothing where none runs that could hear it."""
    # Also what is not found is an `APIError`.
    with suppress(docker.errors.APIError):
        engine.containers.get(container_name(environment_id)).exec_run(f"touch /tmp/{cue}", user="1000:1000")


@dataclass
class Images:
    """Makes images; all of them go at the end."""

    engine: docker.DockerClient
    made: list[str] = field(default_factory=list)

    def variant(self, command: str) -> str:
        """The sandbox image with a shell command for an entry point."""
        tag = self._tag()
        entry = json.dumps(["/bin/sh", "-c", command])
        dockerfile = f"FROM {IMAGE}\nLABEL desktop-environments.test=trouble\nENTRYPOINT {entry}\n"
        self.engine.images.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True, forcerm=True)
        return tag

    def stranger(self, command: str) -> str:
        """An image that says nothing of a desktop: a shell, and neither ports nor labels."""
        tag = self._tag()
        changes = [f"ENTRYPOINT {json.dumps(['/bin/sh', '-c', command])}", "USER 1000:1000"]
        repository, version = tag.split(":")
        root = sandbox_archive()
        self.engine.api.import_image_from_data(root, repository=repository, tag=version, changes=changes)
        return tag

    def foreign(self) -> str:
        """An image for another architecture, on this host already, under the name of a registry nobody runs."""
        tag = f"127.0.0.1:9/trouble-{uuid4().hex[:12]}:1"
        self.made.append(tag)
        layer = _tar({"x": b"x"})
        config = json.dumps(
            {
                "architecture": "s390x",
                "os": "linux",
                "config": {"Cmd": ["/x"]},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            }
        ).encode()
        manifest = json.dumps(
            [{"Config": "config.json", "RepoTags": [tag], "Layers": ["layer.tar"]}]
        ).encode()
        parts = {"config.json": config, "layer.tar": layer, "manifest.json": manifest}
        self.engine.images.load(_tar(parts))
        return tag

    def _tag(self) -> str:
        self.made.append(f"trouble-{uuid4().hex[:12]}:1")
        return self.made[-1]


@contextmanager
def images() -> Iterator[Images]:
    """A maker of images; what it made is removed at the end."""
    with closing(docker.from_env(timeout=120)) as engine:
        maker = Images(engine)
        try:
            yield maker
        finally:
            for tag in maker.made:
                try:
                    engine.images.remove(tag, force=True)
                except docker.errors.ImageNotFound:
                    continue


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
