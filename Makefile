# make demo   the whole study on the embedded cohort, into outputs/demo/
# make test   everything CI runs
# make test-fast   the tests that take no time, all of them in two minutes: for between two thoughts
# make lint   what CI checks without executing: style, types, the workflow, the Dockerfile
# make lab    JupyterLab on the notebooks
# make readme numbers of the pages from docs/results, into which it takes those of the demo study
# make book   the book of the demo study once more, into outputs/demo/book/
# make notebooks   the committed notebooks anew: the demo study, executed and published
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready
DEV    := $(VENV)/dev

.PHONY: demo test test-fast lint lab readme book notebooks bench clean

demo: $(READY)
	$(BIN)/dmsmil run params/demo.yaml

test: $(READY)
	$(BIN)/python -m pytest

test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(BIN)/hadolint Dockerfile

lab: $(READY)
	$(BIN)/jupyter lab notebooks

readme: $(READY)
	$(BIN)/python -m dmsmil.book.readme outputs/demo

book: $(READY)
	$(BIN)/dmsmil book params/demo.yaml

notebooks: $(READY)
	$(BIN)/dmsmil run params/demo.yaml
	$(BIN)/dmsmil run params/demo.yaml -p study demo_more -p demo_patients 50 --only 00
	$(BIN)/dmsmil apply params/demo.yaml params/demo_new.csv
	$(BIN)/python -m dmsmil.book.publish outputs/demo

bench: $(READY)
	$(BIN)/dmsmil bench

# The marker is written last: an interrupted installation is done again.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(READY)

$(DEV): $(READY)
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable ".[dev]"
	touch $(DEV)

clean:
	rm -rf $(VENV) outputs/*/
