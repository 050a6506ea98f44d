#!/bin/sh
# Makes .venv what requirements/dev.txt says, from a bare Python: needs nothing but `python3` and PyPI.
# Written in sh because it runs before there is a Python that can be relied on.
# Usage: bootstrap.sh [uv]    with `uv` it only installs uv, for `make lock`
set -eu
cd "$(dirname "$0")/.."
root=$(pwd -P)
mkdir -p var

started=$(date +%s)
step() { printf '      %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
is_root() { [ "$(id -u)" = 0 ]; }
has_apt() { command -v apt-get >/dev/null 2>&1; }

apt_install() {
    step "apt-get install $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "$@" >var/apt.log 2>&1 </dev/null && return
    # A fresh machine has no package lists yet, and an old one has lists of packages that are gone.
    apt-get update -qq >>var/apt.log 2>&1 </dev/null || true
    apt-get install -y -qq --no-install-recommends "$@" >>var/apt.log 2>&1 </dev/null || {
        tail -n 15 var/apt.log >&2
        die "apt-get could not install $*; the whole output is in var/apt.log"
    }
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for python in "${PYTHON:-}" python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do
        if [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 && new_enough "$python"; then
            # The interpreter itself, not a version manager's shim that could later mean another one, nor the
            # environment that happens to be active, which would be rebuilt from itself.
            "$python" -c 'import os, sys; print(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))'
            return
        fi
    done
    return 1
}

# Two `make` runs must not fill the same environment at once; `flock` is in Debian's essential util-linux.
if command -v flock >/dev/null 2>&1; then
    exec 9>var/python.lock
    flock -n 9 || { step "another run sets up this checkout: waiting for it"; flock 9; }
fi

if ! python=$(find_python); then
    if is_root && has_apt && ! command -v python3 >/dev/null 2>&1; then
        apt_install python3 python3-venv
    fi
    python=$(find_python) || die "Python 3.11 or newer is needed: install it, or name it with PYTHON=/path/to/python"
fi
version=$("$python" -c 'import platform; print(platform.python_version())')

# What the environments are made from, by content: a touched file changes nothing, a moved checkout does.
digest() { { printf '%s\n' "$root" "$python" "$version"; cat "$@"; } | sha256sum | cut -d' ' -f1; }
same() { [ "$(cat "$1" 2>/dev/null || true)" = "$2" ]; }

uv=var/uv/bin/uv
stamp=$(digest requirements/uv.txt)
if ! same var/uv/.stamp "$stamp" || [ ! -x "$uv" ]; then
    if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
        if is_root && has_apt; then
            apt_install python3-venv
        fi
        "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
            die "$python has no venv module: install it (on Debian: apt-get install python3-venv)"
    fi
    step "installing uv with pip, hash-checked (Python $version)"
    rm -rf var/uv
    "$python" -m venv var/uv
    var/uv/bin/python -m pip install -qq --no-input --disable-pip-version-check --only-binary :all: \
        --require-hashes -r requirements/uv.txt
    printf '%s\n' "$stamp" >var/uv/.stamp
fi
[ "${1:-}" = uv ] && exit 0

# A configuration above the checkout, or an environment that is active, must not decide what is installed here.
export UV_NO_CONFIG=1 UV_NO_PROGRESS=1
# Caches are welcome in the home directory, but nothing depends on there being one.
[ -n "${UV_CACHE_DIR:-}" ] || [ -w "${HOME:-/nonexistent}" ] || export UV_CACHE_DIR="$root/var/uv-cache"
unset VIRTUAL_ENV CONDA_PREFIX UV_PROJECT_ENVIRONMENT

stamp=$(digest requirements/dev.txt pyproject.toml scripts/bootstrap.sh)
if same .venv/.stamp "$stamp" && [ -x .venv/bin/python ]; then
    step "up to date (.venv, Python $version)"
    exit 0
fi
home=$(digest /dev/null)
if ! same .venv/.home "$home" || [ ! -x .venv/bin/python ]; then
    step "making .venv with Python $version"
    "$uv" venv --quiet --clear --python "$python" .venv
    printf '%s\n' "$home" >.venv/.home
fi
rm -f .venv/.stamp
step "installing $(grep -c '==' requirements/dev.txt) packages, hash-checked, and the project itself"
"$uv" pip sync --quiet --python .venv --require-hashes requirements/dev.txt
"$uv" pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
printf '%s\n' "$stamp" >.venv/.stamp
step "done in $(($(date +%s) - started)) s"
