# make demo        installs into .venv and runs the example with the small model that ships with the program
# make test-fast   installs the test tools and runs the tests that start no process, in a minute
# make test        runs all tests
# make docs        builds the docs as a site, in site/
# make check       everything that has to be clean before a change is pushed

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR := demo

.PHONY: demo test test-fast lint docs check clean

demo: $(VENV)/.installed
	rm -rf $(DEMO_DIR)
	$(BIN)/virnucpro predict examples/example.fasta --model-type mini --output-dir $(DEMO_DIR)
	@echo
	@$(BIN)/python -m tools.compare_calls $(DEMO_DIR) examples/labels.tsv

# A file's tests run in one process, which alone prepares what they share.
test: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

test-fast: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses=auto --dist=loadfile -m "not slow and not launch"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The variable silences an advertisement for a successor of mkdocs.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint docs test

clean:
	rm -rf $(VENV) $(DEMO_DIR) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# Most of these packages' modules are never imported, so they are compiled when they are.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@
