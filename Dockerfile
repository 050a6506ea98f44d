# One image for the project's own services; docker-compose.yml says which of them a container runs.
# Build it with `make service-image`: the hash-checked packages are fetched outside, since a container
# may reach no package index.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS python
# A plain Debian base has no Python yet.
RUN set -eu; \
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then \
        export DEBIAN_FRONTEND=noninteractive; \
        apt-get update; \
        apt-get install -y --no-install-recommends ca-certificates python3 python3-venv; \
        apt-get clean; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    groupadd --gid 10001 desktop; \
    useradd --uid 10001 --gid desktop --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin desktop

FROM python AS packages
COPY requirements/runtime.txt var/wheels* /wheels/
RUN set -eu; \
    if ! ls /wheels/*.whl >/dev/null 2>&1; then \
        echo 'There are no packages in var/wheels: run "make service-image".' >&2; \
        exit 1; \
    fi; \
    python3 -m venv /opt/venv; \
    /opt/venv/bin/pip install --quiet --disable-pip-version-check --no-compile --no-index --find-links /wheels \
        --require-hashes -r /wheels/runtime.txt; \
    /opt/venv/bin/pip uninstall --quiet --yes pip setuptools; \
    python3 -m compileall -q /opt/venv

FROM python
COPY --from=packages /opt/venv /opt/venv
COPY activities /app/activities
COPY api /app/api
COPY cli /app/cli
COPY inventory /app/inventory
COPY migrations /app/migrations
COPY models /app/models
COPY workers /app/workers
COPY workflows /app/workflows
COPY scripts/__init__.py scripts/worker_health.py /app/scripts/
RUN python3 -m compileall -q /app
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONPATH=/app
WORKDIR /app
USER desktop
LABEL org.opencontainers.image.title="Desktop environments" \
      org.opencontainers.image.description="API, control worker, host worker and migrations of the control plane"
CMD ["python", "-m", "api"]
