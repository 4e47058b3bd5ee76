# Two commands: `make demo` and `make test`. Each makes the environment first and reuses it afterwards.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UV_VERSION := 0.13.9
# Bytecode is cached: every Ray worker imports torch.
unexport PYTHONDONTWRITEBYTECODE
# A local folder of wheels named for pip serves uv as well.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

.PHONY: demo test test-slow env clean-env
demo: env
	@$(BIN)/unimed demo

# Two files at a time, and then, with the machine for themselves, the tests that share a whole stack.
test: env
	@$(BIN)/python -m pytest -m "not slow and not stack" -n 2 --dist loadfile
	@$(BIN)/python -m pytest -m "not slow and stack"

test-slow: env
	@$(BIN)/python -m pytest -m slow

env: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "1/3 virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "2/3 $$(grep -c == requirements.lock) pinned packages (3 GB; half a minute to three)"
	@$(BIN)/uv pip install --python $(BIN)/python --no-progress --quiet -r requirements.lock
	@echo "3/3 this project"
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $(STAMP)

clean-env:
	rm -rf $(VENV)
