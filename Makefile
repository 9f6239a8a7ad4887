# Both `make dev` and `make test` set up their own virtual environment first; a second run finds it ready.
#   make dev ARGS="--port 9000"       make test ARGS="tests/dev -k postgres"       make … PYTHON=python3.13

PYTHON ?= python3
ARGS ?=
RUN = .venv/bin/python -m
# Nothing of a developer's shell (tokens, proxies, provider keys, PG… variables) reaches a test.
CLEAN = env -i PATH="$$PATH" HOME="$$HOME" LANG=C.UTF-8 TERM="$${TERM:-dumb}" TMPDIR="$${TMPDIR:-/tmp}"

.PHONY: dev test lint format bench clean

dev:
	@PYTHON="$(PYTHON)" .ci/install dev
	@$(RUN) server dev $(ARGS)

test: lint
	@echo "Running the tests…"
	@$(CLEAN) $(RUN) pytest --numprocesses=auto --dist=worksteal $(ARGS)

lint:
	@PYTHON="$(PYTHON)" .ci/install test
	@echo "Checking style and types…"
	@$(CLEAN) $(RUN) ruff check --quiet
	@$(CLEAN) $(RUN) ruff format --check --quiet
	@$(CLEAN) $(RUN) mypy --no-error-summary

format:
	@PYTHON="$(PYTHON)" .ci/install test
	@$(RUN) ruff check --fix --quiet
	@$(RUN) ruff format --quiet

bench:
	@PYTHON="$(PYTHON)" .ci/install test
	@$(RUN) bench $(ARGS)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
