# `make demo`, `make up` and `make test` work as the first command in a fresh clone: they make .venv and install what they need.

# The first Python of a version that all dependencies have wheels for.
PYTHON ?= $(shell for p in python3 python3.11 python3.12; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo up down test soak bench lint format clean

demo: .venv/.installed
	$(BIN)/olmoflow run end-to-end deployments/recipes/demo.yaml

up: .venv/.installed
	$(BIN)/olmoflow up $(UP_ARGS)

down:
	$(BIN)/olmoflow down

test: .venv/.installed-test
	$(BIN)/python -m pytest -m "not soak" --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

soak: .venv/.installed-test
	$(BIN)/python -m pytest -m soak $(PYTEST_ARGS)

# About three hours on a quiet machine, where OLMOFLOW_DATA is set (benchmarks/orchestration.py) two more; the peers' numbers are taken in the same run.
bench: .venv/.installed-test .venv-peers/.installed
	for name in repetition tokenization curation rethreshold training loader checkpoint soup mix scale evaluation microanneal orchestration; do \
		$(BIN)/python -m benchmarks.$$name --out benchmarks/results/$$name.json || exit 1; done

lint: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deployments/containers/Containerfile.*

format: .venv/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and alone: a plain requirement would let the resolver look at builds other than the pinned one.
.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "olmoflow needs Python 3.11 or 3.12: install one, or set PYTHON=/path/to/python"; exit 1; }
	@echo "installing olmoflow into .venv (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) --editable '.[test]'
	@touch $@

.venv/.installed-lint: .venv/.installed
	$(PIP) --editable '.[lint]'
	@touch $@

# The dolma toolkit pins releases that nothing else here can live with.
.venv-peers/.installed:
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check dolma==1.2.1
	@touch $@

clean:
	rm -rf .venv .venv-peers store corpus
