# make demo, make test: each makes the virtual environment that it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process a core: a test is one thread. PYTEST_ARGS= runs them in one process.
PYTEST_ARGS ?= -n auto --dist worksteal
# Python compiles a module when it first imports it: pip need not compile those that nobody does.
PIP_ARGS := --quiet --disable-pip-version-check --no-compile -c constraints.txt
STAMP := $(VENV)/.installed

# `make gpu GPU_PYTHON=python3` is for a machine whose Python has torch, pytest and what pellucid needs: nothing is
# installed there.
GPU_PYTHON ?= $(BIN)/python
GPU_OUT ?= runs/gpu

.PHONY: demo test install lint format bench gpu pictures clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) torch
	$(BIN)/python -m pip install $(PIP_ARGS) -e '.[dev]'
	touch $@

demo: install
	$(BIN)/pellucid train sentiment --out runs/sentiment --expect 0.83
	$(BIN)/pellucid predict runs/sentiment/best.ckpt --explain

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/pellucid bench

gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),install)
	$(GPU_PYTHON) benchmarks/gpu.py --out $(GPU_OUT) $(GPU_ARGS)

# Of the README.
pictures: install
	for lang in en zh; do \
	  $(BIN)/pellucid explain rnn --input-size 256 --hidden-size 128 --sentence "你个扑该!" --lang $$lang --save docs/pictures/rnn.$$lang.svg && \
	  $(BIN)/pellucid explain conv2d --dilation 2 --lang $$lang --save docs/pictures/conv2d.$$lang.svg || exit 1; \
	done

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
