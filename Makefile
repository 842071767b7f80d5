# Two commands do everything: `make up` runs the product, `make test` proves it.
# Both make .venv from requirements.lock when it is missing or older than the lock.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info < (3,14))' 2>/dev/null && { echo $$p; break; }; done)
VENV   ?= .venv
BIN    := $(VENV)/bin
PORT   ?= 8400
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help up test readme test-frameworks test-engines check format lock clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(STAMP): requirements.lock pyproject.toml sdk/pyproject.toml
	@.ci/venv "$(PYTHON)" "$(VENV)"
	@touch $@

up: $(STAMP) ## run the gateway on port 8400 with an emulated engine and a SQLite file
	@exec $(BIN)/agentserve up --port $(PORT)

test: $(STAMP) check ## every check and every test
	$(BIN)/pytest -q -n auto --dist loadfile

readme: ## every command of the README, in order, in a fresh clone of what is committed
	$(PYTHON) -m tests.docs.readme

test-frameworks: $(STAMP) ## every agent framework, each in an environment of its own (long)
	$(BIN)/python -m tests.frameworks.run

test-engines: $(STAMP) ## real engines on CPU, each in an environment of its own (long)
	$(BIN)/python -m tests.engines.run

check: $(STAMP) ## format, lint, types, import contracts, tidy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.tidy

format: $(STAMP) ## rewrite the sources in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP) ## take the newest versions that pyproject.toml allows into requirements.lock
	$(BIN)/uv pip compile -q --upgrade pyproject.toml --all-extras --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock

clean: ## remove what was made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
