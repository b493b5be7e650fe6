# Every target works alone on a machine with Python and nothing else: it makes .venv first.
# PYTHON chooses the interpreter, e.g. `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JUDGED := runs/phantoms-128

.PHONY: help install demo judge test lint types docs benchmark clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(VENV)/installed  ## make .venv with camlib and everything the targets need

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install  ## train on phantom radiographs and draw where the network looked (three minutes)
	$(BIN)/python examples/pneumonia/run.py

judge: install  ## judge every method on the phantoms' network at 128 px, trained first if need be (five minutes)
	test -e $(JUDGED)/metrics.json || $(BIN)/python examples/pneumonia/run.py --size 128 --output $(JUDGED)
	$(BIN)/python examples/pneumonia/judge.py --run $(JUDGED)

test: install lint types  ## lint, types and every test
	$(BIN)/python -m pytest

lint: install  ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy

docs: install  ## the documentation, warnings are errors
	$(BIN)/sphinx-build -W -n -q -b html docs docs/_build/html

benchmark:  ## time and memory beside a bare forward pass and the peers, in an environment of its own
	PYTHON=$(PYTHON) benchmarks/run

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-benchmark docs/_build build dist runs
