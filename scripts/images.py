"""Images on the engine: pull, import, build, with progress; and a base image where none can be pulled."""

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import docker
import requests
from docker.errors import APIError, BuildError, DockerException, ImageNotFound

from scripts import engine
from scripts.apt_sources import mirrors
from scripts.console import SetupError, Ticker, say, tail
from scripts.machine import VAR, apt_install, can_install_packages, run_shown

CONTENT_LABEL = "desktop-environments.content"
"""Image label with the hash of what the image was built from: a fresh checkout knows a ready image by it."""

DEBIAN = "bookworm"
LOCAL_BASE = f"desktop-sandbox-base:{DEBIAN}"
"""Made here with mmdebstrap where no registry can be reached."""

_PULL_STALL_SECONDS = 20
_BUILD_SILENCE_SECONDS = 900


def label(api: docker.APIClient, tag: str, name: str) -> str | None:
    """A label of a local image; None when there is no such image or label."""
    found = _inspect(api, tag)
    value = found and (found["Config"]["Labels"] or {}).get(name)
    return str(value) if value else None


def exists(api: docker.APIClient, tag: str) -> bool:
    """Whether the engine has the image."""
    return _inspect(api, tag) is not None


def _inspect(api: docker.APIClient, tag: str) -> dict[str, Any] | None:
    try:
        return cast("dict[str, Any]", api.inspect_image(tag))  # type: ignore[no-untyped-call]
    except ImageNotFound:
        return None


def base_image(api: docker.APIClient, preferred: str) -> str:
    """An image to build on: `preferred` when it is here or can be pulled, else one made here.

    Raises:
        SetupError: it cannot be pulled and not be made.
    """
    if exists(api, preferred):
        return preferred
    if exists(api, LOCAL_BASE):
        say(f"{preferred} is not here; building on {LOCAL_BASE}, made earlier on this machine")
        return LOCAL_BASE
    if _pull(preferred):
        return preferred
    _debootstrap(api)
    return LOCAL_BASE


def _pull(reference: str) -> bool:
    say(f"pulling {reference} (given up after {_PULL_STALL_SECONDS} s without progress)")
    ticker = Ticker()
    repository, tag = reference.rsplit(":", 1)
    try:
        # The time limit counts from one message to the next: a slow pull goes on, a dead one does not.
        with engine.client(timeout=_PULL_STALL_SECONDS) as api:
            for message in api.pull(repository, tag, stream=True, decode=True):
                if "error" in message:
                    say(f"cannot be pulled: {message['error'][:160]}")
                    return False
                ticker.tick(f"{message.get('status', '')} {message.get('progress', '')}")
    except (DockerException, requests.RequestException) as error:
        reason = error.explanation if isinstance(error, APIError) and error.explanation else error
        say(f"cannot be pulled: {str(reason)[:160]}")
        return False
    return True


def _debootstrap(api: docker.APIClient) -> None:
    if shutil.which("mmdebstrap") is None:
        if not can_install_packages():
            raise SetupError(
                "the base image cannot be pulled, and making it needs mmdebstrap "
                "(on Debian, as root: apt-get install mmdebstrap)"
            )
        apt_install(["mmdebstrap", "debian-archive-keyring"])
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=VAR, prefix="base-") as folder:
        archive = Path(folder) / "base.tar"
        options = ["--variant=minbase", DEBIAN, str(archive)]
        say(f"making {LOCAL_BASE} with mmdebstrap")
        own = mirrors(DEBIAN, Path(folder))
        # First as this machine gets its packages, then by mmdebstrap's own default.
        attempts = [[*own.options, *options, *own.mirrors], options] if own else [options]
        for number, attempt in enumerate(attempts):
            archive.unlink(missing_ok=True)
            if run_shown(["mmdebstrap", *attempt], show_failure=number == len(attempts) - 1) == 0:
                break
            if number < len(attempts) - 1:
                say("this machine's own package sources do not do; trying Debian's default")
        else:
            raise SetupError("mmdebstrap could not make the base image; its output is above")
        # Imported only when whole: a tar that breaks off would make an image all the same.
        say(f"importing {archive.stat().st_size / 1e6:.0f} MB")
        repository, tag = LOCAL_BASE.rsplit(":", 1)
        with archive.open("rb") as source:
            # In pieces: given a file, requests announces a length beside the SDK's chunked encoding.
            answer = api.import_image_from_stream(
                iter(lambda: source.read(1 << 20), b""),
                repository=repository,
                tag=tag,
                changes=['CMD ["/bin/sh"]', "ENV LANG=C.UTF-8"],
            )
    if not exists(api, LOCAL_BASE):
        raise SetupError(f"docker import failed: {answer}")


def build(
    context: Path,
    tag: str,
    *,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    url: str | None = None,
) -> None:
    """Build an image, showing each instruction; its network is the engine's default. The one that had its name before
    is removed if nothing uses it.

    Raises:
        SetupError: the build failed.
    """
    ticker, last = Ticker(), deque[str](maxlen=40)
    started = time.monotonic()
    try:
        with engine.client(url, timeout=_BUILD_SILENCE_SECONDS) as api:
            former = _inspect(api, tag)
            messages = api.build(
                path=str(context),
                tag=tag,
                rm=True,
                forcerm=True,
                decode=True,
                buildargs=dict(arguments),
                labels=dict(labels),
            )
            for text in _build_output(messages):
                last.append(text)
                if text.startswith("Step "):
                    say(" ".join(text.split())[:110])
                else:
                    ticker.tick(text)
            if former is not None:
                _remove_unused(api, former["Id"])
    except (BuildError, DockerException, requests.RequestException) as error:
        tail(last)
        raise SetupError(f"building {tag} failed: {' '.join(str(error).split())[:300]}") from None
    say(f"built {tag} in {time.monotonic() - started:.1f} s")


def _remove_unused(api: docker.APIClient, image_id: str) -> None:
    """Remove an image that has no name any more and that neither a container nor another image is made from."""
    found = _inspect(api, image_id)
    if found is None or found["RepoTags"]:
        return
    try:
        api.remove_image(image_id)
    except ImageNotFound:
        return
    except APIError as error:
        if error.status_code != 409:
            raise
        say(f"the former image {image_id.removeprefix('sha256:')[:12]} is still used, and stays")


def _build_output(messages: Iterable[Any]) -> Iterator[str]:
    for message in messages:
        if "error" in message:
            raise BuildError(message["error"], iter(()))
        # A long line can hold carriage returns: only its last state counts.
        text = str(message.get("stream") or message.get("status") or "").rstrip().rsplit("\r", 1)[-1]
        if text:
            yield text
