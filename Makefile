# Every target works alone on a machine with Python and nothing else: it makes .venv first.
# PYTHON chooses the interpreter, e.g. `make test PYTHON=python3.12`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
JUDGED := runs/phantoms-128

.PHONY: help install browser demo judge test test-oldest lint types docs package benchmark clean

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

browser:  ## a Chromium for the tests of the report, unless there is one
	.ci/browser

test: install browser lint types  ## lint, types and every test
	$(BIN)/python -m pytest

lint: install  ## style, format, and the files that other tools read
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/nbstripout --verify examples/pneumonia/*.ipynb

types: install  ## mypy, strict
	$(BIN)/mypy

docs: install  ## the documentation: the gallery run, warnings are errors, every inner link checked
	$(BIN)/sphinx-build -W -n -q -b html docs docs/_build/html
	$(BIN)/python -m pytest -q tests/test_site.py --site docs/_build/html

package: install  ## sdist and wheel, checked, and the wheel used in an environment of its own
	.ci/package

test-oldest:  ## the tests of the library with the oldest packages that pyproject.toml allows
	PYTHON=$(PYTHON) .ci/test-oldest

benchmark:  ## time and memory beside a bare forward pass and the peers, in an environment of its own
	PYTHON=$(PYTHON) benchmarks/run

clean:  ## remove what the targets made
	rm -rf $(VENV) .venv-benchmark docs/_build build dist runs
