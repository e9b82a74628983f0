# Every target sets itself up: a virtual environment in .venv with the exact versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := 0.13.9
READY := $(VENV)/.ready
PEER := .venv-peer
DEMO := .venv-demo

.PHONY: bench bench-peer demo gpu test test-slow check format clean

# The whole benchmark on the embedded data set: makes the data, trains every cell, prints the table.
bench: $(READY)
	$(BIN)/vqa-bench matrix configs/mini.yaml --jobs 2

# Ours against the reference from PyPI, which lives in an environment of its own: both packages are called mblm.
bench-peer: $(READY) $(PEER)/.ready
	$(BIN)/python -m benchmarks.peer.run --reference-python $(PEER)/bin/python

# A trained cell to play with, `make demo RUN=runs/mini/mblm-pixels`. gradio wants an older Pillow than the rest is
# pinned to, so it lives in an environment of its own.
demo: $(DEMO)/.ready
	$(DEMO)/bin/vqa-bench demo $(or $(RUN),$(error say which run: make demo RUN=runs/mini/mblm-pixels))

# Kernels, speed, length, the reference and accuracy on one GPU, under any Python that has PyTorch for it: nothing is
# installed, VQA_WHEELS=folder gives what that Python lacks. Without a GPU every part runs at a tiny size on the CPU.
gpu:
	$(PYTHON) -m benchmarks.gpu $(GPU)

# One thread a worker: there is a worker for every core.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

$(PEER)/.ready: benchmarks/peer/requirements.txt $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(PEER)
	$(BIN)/uv pip install --quiet --python $(PEER)/bin/python --requirement $<
	touch $@

$(DEMO)/.ready: pyproject.toml constraints.txt $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(DEMO)
	grep -v '^pillow==' constraints.txt > $(DEMO)/constraints.txt
	$(BIN)/uv pip install --quiet --python $(DEMO)/bin/python --constraint $(DEMO)/constraints.txt --editable '.[demo]'
	touch $@

clean:
	rm -rf $(VENV) $(PEER) $(DEMO) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
