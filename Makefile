# Two commands for everybody: `make search` finds a strategy for the shipped model,
# `make test` runs every check. Running either again installs nothing.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)

# lmms-eval has an environment of its own: it asks for a torchvision, whose wheel does not load
# beside the CPU torch and then breaks transformers. So its pinned packages come without theirs.
LMMS := .venv-lmms

.PHONY: search test lmms-eval format wheel-check clean

search: $(VENV)/installed
	$(BIN)/vflowopt-search search

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term

lmms-eval: $(LMMS)/installed
	OMP_NUM_THREADS=1 $(LMMS)/bin/python -m pytest -m lmms_eval tests/integrations

format: $(VENV)/installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel-check: $(VENV)/installed-test
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python .ci/check_wheel.py build/wheel/*.whl

clean:
	rm -rf $(VENV) $(LMMS) build dist .coverage .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python $(LMMS)/bin/python:
	@test -n "$(PYTHON)" || { echo "no python3 of version 3.11 or later on the PATH; install one, or name it: make PYTHON=/path/to/python3 search" >&2; exit 1; }
	$(PYTHON) -m venv $(patsubst %/bin/python,%,$@)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	touch $@

$(LMMS)/installed: pyproject.toml constraints-lmms.txt | $(LMMS)/bin/python
	$(LMMS)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --no-compile \
		-r constraints-lmms.txt -e .
	touch $@
