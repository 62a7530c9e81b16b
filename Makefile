# make demo   installs into .venv and runs the example, with weights made on the spot
# make test   installs the test tools as well and runs the tests
# make check  everything that has to be clean before a change is pushed

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR := demo

.PHONY: demo test lint check clean

demo: $(VENV)/.installed
	rm -rf $(DEMO_DIR)
	$(BIN)/python -m tools.make_demo_weights $(DEMO_DIR)/weights
	$(BIN)/virnucpro predict examples/example.fasta \
	  --model-path $(DEMO_DIR)/weights/500_model.safetensors \
	  --dna-weights $(DEMO_DIR)/weights/dnabert_s \
	  --protein-weights $(DEMO_DIR)/weights/esm2.pt \
	  --output-dir $(DEMO_DIR)/results
	@echo
	@cat $(DEMO_DIR)/results/records.tsv
	@echo
	@echo "The weights of this demonstration are random: the calls mean nothing yet."

test: $(VENV)/.installed-dev
	$(BIN)/pytest --numprocesses=auto

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf $(VENV) $(DEMO_DIR) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
