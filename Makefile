# Two commands: `make demo` and `make test`. Both set up their own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all oracle lint docs clean

# The marker file remembers which pyproject.toml and constraints.txt the environment was made from.
$(VENV)/.setup-done: pyproject.toml constraints.txt
	@echo "Setting up the environment in $(VENV) (a few minutes, once) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "lengthen needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" && exit 1)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.setup-done
	@$(BIN)/lengthen run quickstart

lint: $(VENV)/.setup-done
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# Two workers of one thread each: two processes with two threads each would fight for the cores of a laptop.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# Needs more than the main set-up: see "All tests" in CONTRIBUTING.md.
test-all: lint
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ray,lm-eval]'
	$(BIN)/python -m pytest -m 'slow or not slow' --timeout 3600

oracle: $(VENV)/.setup-done
	$(BIN)/python -m pytest tests/train/test_oracle.py -m 'slow or not slow' --timeout 3600

docs: $(VENV)/.setup-done
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache site
