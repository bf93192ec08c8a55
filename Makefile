# Two commands for everyone, `make demo` and `make test`: each makes .venv, installs what it needs and runs.
# The rest is for developers: lint, docs, tutorials, bench, clean.

# The first Python >= 3.11 found; another is chosen by `make PYTHON=/path/to/python test`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
TEST_ARGS ?= -n auto --maxprocesses 4
ARGS ?=

# Real data for the tests and the benchmarks: a folder beside the checkout, where there is one.
ifndef SCGPT_TL_DATA
ifneq ($(wildcard ../shared/data/.),)
export SCGPT_TL_DATA := $(abspath ../shared/data)
endif
endif

.PHONY: demo test lint docs tutorials bench clean

demo: .venv/.has-package
	$(BIN)/scgpt-tl demo $(ARGS)

test: .venv/.has-test
	$(BIN)/python -m pytest $(TEST_ARGS) $(ARGS)

lint: .venv/.has-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.has-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Runs the tutorials and puts their results into them; one: `make tutorials ARGS=tutorials/map.ipynb`.
tutorials: .venv/.has-docs .venv/.has-test
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tutorials/execute.py $(ARGS)

# Every figure that the README quotes; one of them: `make bench ARGS=benchmarks/bench_binning.py`.
bench: .venv/.has-test
	for file in $(or $(ARGS),$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))); do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv docs/_build docs/generated

# Stamps: installing again happens only after pyproject.toml or constraints.txt has changed.
.venv/.has-package: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "scgpt_tl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing scgpt_tl into .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@$(PIP) --editable .
	@touch $@

.venv/.has-%: .venv/.has-package
	@echo "installing what '$*' needs"
	@$(PIP) --group $*
	@touch $@
