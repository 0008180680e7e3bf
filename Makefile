# make run: the whole pipeline. make test: the tests. The rest serves these two. Each of run, up, down, status is `distill` VERB.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup setup-hashed run test test-slow test-server lint up down status smoke clean

help:
	@echo "make run        train, distil, evaluate: the whole pipeline on the data of params.yaml"
	@echo "make test       the tests, under 5 minutes"
	@echo "make test-slow  the rest of them: whole pipelines, kills;  make test-server  real servers"
	@echo "make up         a local Prefect server, an MLflow server and a worker;  make down  ends them"
	@echo "make setup      only the environment in $(VENV);  make setup-hashed  the same with digests, see docs/install.md"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable . --group dev
	touch $(READY)

# torch comes in many builds and a folder has no digest: these two are installed without one
setup-hashed:
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-pip.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
	touch $(READY)

run: $(READY)
	@$(BIN)/distill run

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not server" --numprocesses 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --numprocesses 2

test-server: $(READY)
	$(BIN)/python -m pytest -m server

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

up: $(READY)
	@$(BIN)/distill up

down: $(READY)
	@$(BIN)/distill down

status: $(READY)
	@$(BIN)/distill status

clean:
	rm -rf artifacts .resume .workspaces mlflow.db mlruns
