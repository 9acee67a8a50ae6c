# Every command sets up what it needs: a virtual environment in .venv, made anew when pyproject.toml changes.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PARITY := .venv-parity
READY := $(VENV)/.ready
PARITY_READY := $(PARITY)/.ready

.PHONY: help setup train test test-parity lint format verify simple-test clean

help:
	@echo "make train        train BERT on this Python's own documentation, about three minutes"
	@echo "make test         run the tests (NumPy, read-only NumPy, array-api-strict)"
	@echo "make test-parity  run the comparisons with PyTorch and transformers (downloads both)"
	@echo "make lint         check style and types"
	@echo "make format       rewrite the code in the house style"
	@echo "make verify       show that the four critical fixes hold"
	@echo "make simple-test  check the basic functions in seconds"
	@echo "make setup        only create the virtual environment in $(VENV)"
	@echo "make clean        remove the environments and caches (never runs/)"

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[plot,test]'
	@touch $@

$(PARITY_READY): pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --upgrade pip
	$(PARITY)/bin/python -m pip install --quiet --editable '.[parity,plot,test]'
	@touch $@

train: $(READY)
	$(VENV)/bin/python scripts/train.py $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

test-parity: $(PARITY_READY)
	$(PARITY)/bin/python -m pytest tests/parity $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy

format: $(READY)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

verify: $(READY)
	$(VENV)/bin/python scripts/verify_fixes.py

simple-test: $(READY)
	$(VENV)/bin/python scripts/simple_test.py

clean:
	rm -rf $(VENV) $(PARITY) *.egg-info .pytest_cache .mypy_cache .ruff_cache build dist
