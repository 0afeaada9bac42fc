# `make help` lists what there is. A fresh machine needs Python 3.11 or newer, make and a C compiler's runtime; no more.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PROTOS := $(shell find protos -name '*.proto')
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help up down demo test chaos check outside bench-memory bench-ledger bench-gateway bench-reports fmt protos docs lock clean

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

up: .venv/.protos ## Run the mesh in the foreground; Ctrl-C drains and stops. ARGS="--replicas gateway=2"
	@exec $(BIN)/mandate up $(ARGS)

down: .venv/.protos ## Stop a mesh that runs in the background
	@exec $(BIN)/mandate down $(ARGS)

demo: .venv/.protos ## Do the main story once and print what happened
	@exec $(BIN)/mandate demo $(ARGS)

test: .venv/.protos ## Run every test that needs no outside service
	$(BIN)/pytest -q -m chaos --ignore tests/outside
	$(BIN)/pytest -n $(WORKERS) -m "not chaos and not chaos_long" --ignore tests/outside

chaos: .venv/.protos ## Kill, storm and check laws for much longer than `make test` does; about 40 minutes
	$(BIN)/pytest -q -m chaos_long

check: .venv/.protos ## Check style, types, imports, contracts and the rules of the house
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against protos/baseline.binpb
	$(BIN)/pytest -q tests/test_house.py tests/contracts

outside: .venv/.protos ## Check against outside parties' own tools, fetched from PyPI and npm (needs node)
	$(BIN)/pytest -q tests/outside

bench-memory: .venv/.protos ## Measure an idle mesh: memory of each process, cold and warm start
	$(BIN)/python -m tests.bench.idle_memory

bench-ledger: .venv/.protos ## Measure the ledger against pgbench on the same server; 6 minutes. ARGS="--rounds 5 --seconds 3"
	@$(BIN)/python -m tests.bench.ledger $(ARGS)

bench-gateway: .venv/.protos ## Measure the gateway beside LiteLLM and Portkey; 15 minutes, fetches both. ARGS="--rounds 5 --seconds 4"
	@$(BIN)/python -m tests.bench.gateway $(ARGS)

bench-reports: .venv/.protos ## Measure usage reports over 10,000,000 completions; 15 minutes, 12 GB. ARGS="1000000"
	$(BIN)/python -m tests.bench.usage_reports $(ARGS)

fmt: .venv/.protos ## Format Python and contracts
	$(BIN)/ruff format --quiet
	$(BIN)/ruff check --fix --quiet || true
	$(BIN)/buf format --write

protos: .venv/.installed ## Generate Python from the contracts again
	$(BIN)/python protos/generate.py
	@touch .venv/.protos

docs: .venv/.protos ## Write the tables of settings and errors in docs/ again
	$(BIN)/python docs/tables.py

lock: .venv/.installed ## Pin every dependency anew, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-header --generate-hashes --upgrade -o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --no-header --generate-hashes --upgrade --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean: ## Remove what was built; the state folder stays (`mandate down --wipe` removes that)
	rm -rf .venv dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find protos -name '*_pb2*.py*' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.locked: requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit("Mandate needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-dev.lock
	@touch $@

.venv/.installed: .venv/.locked pyproject.toml
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/.protos: .venv/.installed protos/generate.py $(PROTOS)
	$(BIN)/python protos/generate.py
	@touch $@
