# `make demo` and `make test` do all the set-up on a fresh machine: Python 3.11 or 3.12 is all they need.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs wheel gpu-check

demo: .venv/ready
	$(BIN)/xd3d demo

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# Does everything work on this machine's GPU, and how fast: ten minutes at most; writes gpu-check.json.
gpu-check: .venv/ready
	$(BIN)/python tests/benchmarks/gpu_check.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	ln -sfn "$(CURDIR)" .venv/xd3d
	MYPYPATH=.venv $(BIN)/mypy --package xd3d

# The documentation as a site, in site/.
docs: .venv/ready
	ln -sfn "$(CURDIR)" .venv/xd3d
	PYTHONPATH=.venv $(BIN)/mkdocs build --strict

# A wheel and a source distribution, in dist/.
wheel: .venv/ready
	$(BIN)/python -m build --quiet

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready
