# Every target does its own set-up and may be run again at any time; what is done already is not done again.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -eu -c
MAKEFLAGS += --no-print-directory

py := .venv/bin/python
# More workers than this only make the tests wait for one Docker Engine.
jobs ?= $(shell n=$$(nproc 2>/dev/null || echo 1); [ "$$n" -lt 4 ] && echo "$$n" || echo 4)
# Arguments for pytest: make test ARGS="-k lifecycle -x"
ARGS ?=

export PIP_NO_INPUT := 1

.PHONY: help setup python demo up test lint audit format bench bench-recovery lock service-image clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

python: # The Python environment alone
	@echo "[1] Python environment"
	scripts/bootstrap.sh

setup: ## Everything the project needs: Python, Docker, Temporal, the sandbox image, PostgreSQL, Chromium
	@echo "[1/6] Python environment"
	scripts/bootstrap.sh
	$(py) -m scripts.setup

# Operators need no PostgreSQL, the inventory is SQLite unless they say otherwise; and they bring their own browser.
.PHONY: setup-run
setup-run:
	@echo "[1/4] Python environment"
	scripts/bootstrap.sh
	$(py) -m scripts.setup docker temporal image

demo: setup-run ## Set up, then the main job from start to finish
	@exec $(py) -m scripts.demo

up: setup-run ## Set up, then keep the whole stack running in the foreground
	@exec .venv/bin/desktopctl up

test: setup ## Set up, then every test
	@exec $(py) -m pytest -n $(jobs) --dist loadgroup $(ARGS)

lint: python ## Linter, formatter, type checker, import contracts
	@set -x
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

audit: python ## Known vulnerabilities of the pinned packages, where the index serves advisories
	@exec $(py) -m scripts.audit_dependencies $(ARGS)

format: python ## Format the code and apply the linter's safe fixes
	@.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup-run ## Start, commands, lists, rest and history against their budgets; ARGS="--runs 10"
	@exec $(py) -m benchmarks.budgets $(ARGS)

bench-recovery: setup-run ## 300 random kills, container and host trouble, long lives; ARGS="--kills 50" for the kills
	@$(py) -m benchmarks.trouble
	$(py) -m benchmarks.kills $(ARGS)
	DESKTOP_MODEL_EXAMPLES=30 DESKTOP_CYCLES=1000 exec $(py) -m pytest -n 2 -rP tests/workflows/test_model.py \
	    tests/workflows/test_long_life.py

lock: ## Write the requirement files anew from pyproject.toml; UPGRADE=1 takes newer versions
	@scripts/lock.sh

service-image: python ## The image of the project's own services, for docker-compose.yml
	@$(py) -m scripts.service_image

clean: ## Remove what set-up made in this checkout; engines, images and installed packages stay
	@rm -rf .venv var/uv var/uv-cache var/wheels var/wheels.stamp var/*.log .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
