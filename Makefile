# The front door: make demo, make test, make bench NAME=…
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, a file in one of them: fixtures of a module or session are made once where they serve.
TWO := -n 2 --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help demo up test unit lint types imports compose bench lock wheel clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# --no-deps: the lock is complete, and what it leaves out on purpose stays out.
$(VENV)/.demo: requirements/demo.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fanout needs Python 3.11 or later: make demo PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r requirements/demo.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.lock
	@echo "installing the tools for tests into $(VENV)"
	@$(PIP) install --no-deps --require-hashes -r requirements/dev.lock
	@touch $@

# In an environment of their own: only benchmarks/overhead needs them.
$(VENV)/.baselines: $(VENV)/.dev requirements/bench.lock
	@echo "installing what is measured against into $(VENV)/baselines"
	@test -x $(VENV)/baselines/bin/python || $(PYTHON) -m venv $(VENV)/baselines
	@$(VENV)/baselines/bin/python -m pip --disable-pip-version-check --quiet \
	  install --no-deps --require-hashes -r requirements/bench.lock
	@touch $@

demo: $(VENV)/.demo  ## extract from a novel with a real model, on this machine, start to finish
	@$(BIN)/fanout demo $(ARGS)

up: $(VENV)/.demo  ## Redis, a local model, a worker and Flower, until Ctrl-C
	@$(BIN)/fanout up $(ARGS)

test: $(VENV)/.dev  ## all tests: unit, integration, acceptance
	@$(BIN)/python -P -m pytest $(TWO) $(ARGS)

unit: $(VENV)/.dev  ## the tests without network, in seconds
	@$(BIN)/python -P -m pytest tests/unit $(ARGS)

lint: $(VENV)/.dev  ## style and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev  ## strict types
	@$(BIN)/mypy

imports: $(VENV)/.dev  ## who may import whom
	@$(BIN)/lint-imports

bench: $(VENV)/.dev $(if $(filter overhead,$(NAME)),$(VENV)/.baselines)  ## one benchmark: make bench NAME=demo
	@test -n "$(NAME)" || { echo "name one: $$(ls -d benchmarks/*/ | xargs -n1 basename | tr '\n' ' ')" >&2; exit 2; }
	@$(BIN)/python -P benchmarks/$(NAME) $(ARGS) $(if $(filter chaos,$(NAME)),$(if $(SCHEDULES),--schedules $(SCHEDULES)) $(if $(SEED),--seed $(SEED)))

compose: $(VENV)/.dev  ## docker-compose.yml against the Compose schema
	@$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

# The tests are copied away from the source, so that only the installed wheel can be imported.
wheel: $(VENV)/.dev  ## build dist/*.whl, install it into an empty environment and test it there
	@rm -rf dist && $(BIN)/python -m build --no-isolation --wheel . >/dev/null
	@set -e; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; \
	$(PYTHON) -m venv $$place/venv; \
	$$place/venv/bin/python -m pip --disable-pip-version-check --quiet install --no-deps \
	  --require-hashes -r requirements/demo.lock -r requirements/dev.lock; \
	$$place/venv/bin/python -m pip --disable-pip-version-check --quiet install --no-deps dist/*.whl; \
	cp -r tests pyproject.toml $$place; cd $$place; \
	venv/bin/python -P -m pytest $(TWO) tests/unit tests/acceptance/test_cli.py

lock:  ## renew the lock files (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate --overrides requirements/overrides.txt --extra local \
	  requirements/demo.in pyproject.toml -o requirements/demo.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate -c requirements/demo.lock requirements/demo.in pyproject.toml \
	  -o requirements/server.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate -c requirements/demo.lock requirements/dev.in -o requirements/dev.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-header --no-annotate requirements/bench.in -o requirements/bench.lock

clean:  ## remove what was built or installed here
	rm -rf $(VENV) dist fanout-demo .mypy_cache .ruff_cache .pytest_cache
