#!/bin/sh
# Writes the requirement files from pyproject.toml. Pins stay as they are unless UPGRADE=1.
# The files name no index: what is installed is decided by the hashes, from where by the machine.
set -eu
cd "$(dirname "$0")/.."
scripts/bootstrap.sh uv

compile() {
    printf '      %s\n' "$1"
    UV_NO_CONFIG=1 UV_CUSTOM_COMPILE_COMMAND="make lock" var/uv/bin/uv pip compile --quiet --generate-hashes \
        --python-version 3.11 --python-platform linux ${UPGRADE:+--upgrade} -o "$@" >/dev/null
}

compile requirements/uv.txt requirements/uv.in
compile requirements/dev.txt --extra embedded --extra dev pyproject.toml
# The services run the very versions that were tested.
compile requirements/runtime.txt --constraints requirements/dev.txt pyproject.toml
