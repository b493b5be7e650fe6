# Every target works on a machine that has Python and nothing else: it makes .venv first.
# PYTHON chooses the interpreter: make test PYTHON=python3.12
# ARGS goes to pytest: make test ARGS="tests/metrics -k deletion"
# On Windows, call make from Git Bash. The targets that start a script of .ci/ or benchmarks/ need bash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
JUDGED := runs/phantoms-128

# The tests of `make quick`: at least one file for each package of the library. The slow tests of these files are
# left out.
QUICK := $(addprefix tests/,test_house.py test_import.py test_documents.py test_registry.py test_errors.py targets imaging \
	test_explanation.py test_padding.py test_capture.py test_untouched.py test_discovery.py \
	test_targets.py test_grad_cam.py methods/test_methods.py methods/test_compare.py \
	methods/test_smoothing.py methods/test_concepts.py test_noise.py test_testing.py \
	metrics/test_box_accuracy.py metrics/test_confidence.py metrics/test_correlation.py \
	metrics/test_curves.py metrics/test_localisation.py metrics/test_scorer.py evaluation \
	reporting/test_report.py)

.PHONY: help install quick test test-quick test-oldest lint types docs package demo judge benchmark clean

help:  ## list the targets
	@awk -F ':.*## +' '/^[a-z-]+:.*##/ { printf "%-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## make .venv with camlib and everything that the other targets need

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quick: install  ## lint, types and the tests that guard daily work, in parallel (about 3 minutes)
	@$(MAKE) --no-print-directory --jobs=2 --keep-going lint types test-quick

test-quick: install  ## only the tests of `make quick`
	$(BIN)/python -m pytest -q -m "not slow and not browser" $(QUICK) $(ARGS)

test: install lint types  ## lint, types and every test, in up to four processes (15 minutes on two cores)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: install  ## check style, format, and the files that other tools read
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/nbstripout --verify examples/pneumonia/*.ipynb

types: install  ## mypy, strict
	$(BIN)/mypy

test-oldest:  ## test the library with the oldest packages that pyproject.toml allows
	PYTHON=$(PYTHON) .ci/test-oldest

docs: install  ## build the documentation, run the gallery and check every internal link; warnings are errors
	$(BIN)/sphinx-build -W -n -q -b html docs docs/_build/html
	$(BIN)/python -m pytest -q tests/test_site.py --site docs/_build/html

package: install  ## build sdist and wheel, check them, and use the wheel in a fresh environment
	.ci/package

demo: install  ## train on phantom radiographs and draw where the network looked (3 minutes)
	$(BIN)/python examples/pneumonia/run.py

judge: install  ## evaluate every method on the phantoms' network at 128 px; trains it first if necessary (5 minutes)
	test -e $(JUDGED)/metrics.json || $(BIN)/python examples/pneumonia/run.py --size 128 --output $(JUDGED)
	$(BIN)/python examples/pneumonia/run.py methods --run $(JUDGED)

benchmark:  ## measure time and memory against the other libraries, in a separate environment
	PYTHON=$(PYTHON) benchmarks/run

clean:  ## remove everything that the targets made
	rm -rf $(VENV) .venv-* docs/_build build dist runs
