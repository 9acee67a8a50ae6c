# Every command first sets up the virtual environment that it needs, and again whenever pyproject.toml has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PARITY := .venv-parity
PEERS := .venv-peers
CUDA := .venv-cuda
READY := $(VENV)/.ready
PARITY_READY := $(PARITY)/.ready
PEERS_READY := $(PEERS)/.ready
CUDA_READY := $(CUDA)/.ready
NOTEBOOKS_READY := $(VENV)/.notebooks-ready
DOCS_READY := $(VENV)/.docs-ready

.PHONY: help setup train test fuzz test-parity test-cuda-build benchmark-peers verify-gpu lint format verify simple-test docs-tables docs notebooks clean

help:
	@echo "make train        train BERT on this Python's own documentation, about three minutes"
	@echo "make test         run the tests (NumPy, read-only NumPy, array-api-strict)"
	@echo "make fuzz         feed every reader of files with 10,000 strange inputs each, with limits of time and memory"
	@echo "make test-parity  run the comparisons with PyTorch and transformers, and the tests on the arrays of PyTorch (downloads both)"
	@echo "make test-cuda-build  compile the CUDA kernels, run all tests on an emulated GPU (downloads 1.5 GB)"
	@echo "make benchmark-peers  time sentence embeddings beside transformers, onnxruntime, OpenVINO (downloads 1 GB)"
	@echo "make verify-gpu   on a machine with a GPU: check and measure it in ten minutes; write a report"
	@echo "make lint         check style, types and the directions of imports"
	@echo "make format       rewrite the code in the house style"
	@echo "make docs-tables  write the generated tables, lists and graphs of the documentation anew"
	@echo "make docs         build the site into build/site: guides, lessons, API reference (downloads Sphinx)"
	@echo "make notebooks    open the lessons in Jupyter (downloads it)"
	@echo "make verify       show that the four critical fixes hold"
	@echo "make simple-test  check in seconds that Mini-BERT works here"
	@echo "make setup        only create the virtual environment in $(VENV)"
	@echo "make clean        remove the environments and caches (never runs/)"

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[fast,plot,test]'
	@touch $@

$(PARITY_READY): pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip install --quiet --upgrade pip
	$(PARITY)/bin/python -m pip install --quiet --editable '.[fast,parity,plot,test]'
	@touch $@

$(PEERS_READY): pyproject.toml
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --upgrade pip
	$(PEERS)/bin/python -m pip install --quiet --editable '.[peers]'
	@touch $@

$(CUDA_READY): pyproject.toml
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/python -m pip install --quiet --upgrade pip
	$(CUDA)/bin/python -m pip install --quiet --editable '.[cuda-build,plot,test]'
	@touch $@

train: $(READY)
	$(VENV)/bin/python scripts/train.py --precision auto $(ARGS)

test: $(READY)
	$(VENV)/bin/python -m pytest $(ARGS)

# Hypothesis belongs to the extra `test`, because `make test` runs some of the cases, too.
fuzz: $(READY)
	$(VENV)/bin/python -m tests.fuzz.run $(ARGS)

test-parity: $(PARITY_READY)
	$(PARITY)/bin/python -m pytest tests/parity $(ARGS)
	$(PARITY)/bin/python -m pytest --device torch tests/backends tests/model tests/ops $(ARGS)

test-cuda-build: $(CUDA_READY)
	$(CUDA)/bin/python -m pytest tests/cuda_build $(ARGS)
	$(CUDA)/bin/python -m pytest --device cuda-emulated tests tests/cuda_emulated $(ARGS)

# The other benchmarks with peers run there too: .venv-peers/bin/python scripts/benchmark.py step
benchmark-peers: $(PEERS_READY)
	$(PEERS)/bin/python scripts/benchmark.py throughput $(ARGS)

# Runs in the active environment, because only its owner knows which CuPy fits the driver.
verify-gpu:
	python3 scripts/verify_gpu.py $(ARGS)

lint: $(READY)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(VENV)/bin/lint-imports

format: $(READY)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

notebooks: $(NOTEBOOKS_READY)
	$(VENV)/bin/python -m jupyterlab notebooks $(ARGS)

$(NOTEBOOKS_READY): $(READY)
	$(VENV)/bin/python -m pip install --quiet --editable '.[notebooks]'
	@touch $@

# -W: a warning, such as a link that leads nowhere, is an error.
docs: $(DOCS_READY)
	$(VENV)/bin/python -m sphinx -W --keep-going -q -E -b html -c docs . build/site $(ARGS)
	@echo "the site is in build/site: open build/site/docs/index.html"

$(DOCS_READY): $(READY)
	$(VENV)/bin/python -m pip install --quiet --editable '.[docs]'
	@touch $@

docs-tables: $(READY)
	$(VENV)/bin/python scripts/generate_docs.py $(ARGS)

verify: $(READY)
	$(VENV)/bin/python scripts/verify_fixes.py

simple-test: $(READY)
	$(VENV)/bin/python scripts/simple_test.py

clean:
	rm -rf $(VENV) $(PARITY) $(PEERS) $(CUDA) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
