# iwm: from recorded gameplay to a served world model. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3.11
STAMP := $(VENV)/.installed

# No package of the stack phones home.
export DO_NOT_TRACK := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export BENTOML_DO_NOT_TRACK := True
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false
# Waiting compute threads sleep; spinning ones starve whatever else runs.
export OMP_WAIT_POLICY := PASSIVE
# Stages, flows and the service find this environment's programs first.
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv with the locked packages

$(STAMP): requirements.lock pyproject.toml
	command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\) .*/\1/p' requirements.lock)"
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/python -m uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/python -m uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.PHONY: demo
demo: setup ## Record real gameplay, run the graph, serve and query the model (cpu profile)
	$(BIN)/iwm demo

.PHONY: smoke
smoke: setup ## The whole graph on the procedural world, in a temporary clone (some ten minutes)
	$(BIN)/iwm smoke

.PHONY: train-strong
train-strong: setup ## The longer runs: GAMES="doom freeway minigrid" (at most 90 minutes on two cores)
	$(BIN)/iwm train-strong $(GAMES)

.PHONY: test
test: setup ## The tests, but for the slow ones
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

.PHONY: test-slow
test-slow: setup ## The slow tests: real servers, kills, the full graph
	$(BIN)/pytest -q -m "slow and not gpu"

.PHONY: check
check: setup ## Format, lint, types, the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: lock
lock: ## Resolve pyproject.toml into requirements.lock anew
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/python -m uv pip compile pyproject.toml --quiet --upgrade --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --python-version 3.11 --custom-compile-command "make lock" --output-file requirements.lock

.PHONY: bench
bench: setup ## Side-by-side measurements: the data path, training, planning, the service
	$(BIN)/python -m uv pip install --quiet --no-build-isolation --python $(BIN)/python --editable '.[bench]'
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.serving

.PHONY: prefect-up
prefect-up: setup ## Prefect server, work pool, worker and deployments on this machine
	$(BIN)/python -m flows.services up

.PHONY: mlflow-ui
mlflow-ui: setup ## The tracking and registry page on 127.0.0.1:5000
	$(BIN)/python -m pipelines.mlflow_ui

.PHONY: down
down: ## Stop what prefect-up and mlflow-ui started
	$(BIN)/python -m flows.services down

.PHONY: clean
clean: ## Remove caches (never data, artifacts, reports or the tracking store)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
