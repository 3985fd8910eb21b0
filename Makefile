# All tasks of this repository. `make` alone lists them.

VENV         ?= .venv
BIN          := $(VENV)/bin
READY        := $(VENV)/.ready
BOTS_VENV    ?= .venv-bots
BOTS_READY   := $(BOTS_VENV)/.ready
# Twice the cores of a small machine: half of the tests' time is waiting.
TEST_WORKERS ?= 4
REPLAY_FOLDER  := .replay
ARGS         ?=

# Without cached bytecode Python takes seconds to start, and the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo replay test test-extended coverage lint format types floors check bench campaign bots screenshots lock clean

help:  ## List what make can do
	@echo "usage: make TARGET [ARGS='more arguments for the tool behind it']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml scripts/setup
	@scripts/setup $(VENV)
	@touch $@

setup: $(READY)  ## Build .venv from nothing (the other targets do it by themselves)

demo: $(READY)  ## Set up, then run the service with eight bots for a minute (ARGS="--forever" keeps it up)
	$(BIN)/ledger-sizer demo $(ARGS)

replay: $(READY)  ## Replay a generated market on an embedded SQLite ledger
	@rm -rf $(REPLAY_FOLDER) && mkdir $(REPLAY_FOLDER)
	$(BIN)/ledger-sizer replay --database-url sqlite:///$(REPLAY_FOLDER)/ledger.db $(ARGS)

test: $(READY)  ## Set up, then run the tests on SQLite and on a real PostgreSQL
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m "not extended" $(ARGS)

test-extended: $(READY)  ## Run what `make test` leaves out: second engines, long demos, more random cases
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -m extended $(ARGS)

coverage: $(READY)  ## Run the tests and show the lines they do not reach
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal --cov --cov-report=term $(ARGS)

lint: $(READY)  ## Check style and formatting with ruff
	$(BIN)/ruff check $(ARGS)
	$(BIN)/ruff format --check

format: $(READY)  ## Format the code and apply ruff's safe fixes
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

types: $(READY)  ## Check types with mypy, strictly
	$(BIN)/mypy $(ARGS)

floors: $(READY)  ## Check that modules import only from lower floors
	$(BIN)/lint-imports $(ARGS)

check: lint types floors test test-extended  ## Everything that has to pass before a change lands

bench: $(READY)  ## Compare throughput and latency with other ways to do it, in one run
	$(BIN)/python -m benchmarks $(ARGS)

campaign: $(READY)  ## Break services and databases on purpose, and audit every acknowledged decision
	$(BIN)/python -m campaign $(ARGS)

$(BOTS_READY): bots/requirements.txt pyproject.toml scripts/setup_bots | $(READY)
	@scripts/setup_bots $(BOTS_VENV) $(VENV)
	@touch $@

bots: $(BOTS_READY)  ## Run the adapters' tests and the rounds of real bots, in an environment of their own
	$(BOTS_VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal tests/adapters
	$(BOTS_VENV)/bin/python -m bots $(ARGS)

screenshots: $(READY)  ## Trade a day on a ledger and take docs/images/dashboard.png (needs Chromium)
	$(BIN)/python scripts/screenshots.py $(ARGS)

lock: $(READY)  ## Write requirements.lock anew from pyproject.toml (ARGS=--upgrade for newer versions)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --generate-hashes \
	    --custom-compile-command "make lock" \
	    --extra service --extra postgres --extra exchanges --extra embedded-pg --extra otel --group dev --group build \
	    --output-file requirements.lock $(ARGS) pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate \
	    --custom-compile-command "make lock" --constraint requirements.lock \
	    --extra service --extra postgres --extra exchanges --extra embedded-pg --group dev --group build --group bots \
	    --output-file bots/requirements.txt $(ARGS) pyproject.toml

clean:  ## Remove everything that was built, downloaded or left behind here
	rm -rf $(VENV) $(BOTS_VENV) $(REPLAY_FOLDER) build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
