# Everything runs in .venv, which the first target that needs it makes.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	touch $(STAMP)

.PHONY: help setup run test thorough faults lint types data sweep bench study study-quick paper paper-quick gpu report docs docs-options clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

setup: $(STAMP) ## Create .venv with the package and its development tools

run: $(STAMP) ## Train on the embedded digits with GroupedNewton (under a minute)
	$(BIN)/gnewton train

test: $(STAMP) ## Run the test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

thorough: $(STAMP) ## Run the test suite with many more cases
	GNEWTON_THOROUGH=1 $(BIN)/python -m pytest -n 2 --dist worksteal

faults: $(STAMP) ## Inject some 4,000 faults into runs and count those survived (seven minutes on two quiet cores)
	$(BIN)/python -m scripts.faults

lint: $(STAMP) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## Check the type hints
	$(BIN)/mypy

data: $(STAMP) ## Fetch MNIST, Fashion-MNIST and CIFAR-10 into data/
	$(BIN)/gnewton data fetch mnist fashion_mnist cifar10

sweep: $(STAMP) ## Train with SGD, Adam and GroupedNewton on the digits, three seeds each
	$(BIN)/gnewton sweep optimizer=sgd,adam,grouped_newton seed=0,1,2

bench: $(STAMP) ## Time the summary and the cubic solver against their references
	$(BIN)/python scripts/bench/cubic.py
	$(BIN)/python scripts/bench/summary.py --only mlp,lenet,bigmlp,vgg11:32 --repeats 3

study: $(STAMP) ## GroupedNewton against tuned and untuned rivals on eight tasks; resumable, a day or more
	$(BIN)/python -m scripts.study full

study-quick: $(STAMP) ## The same with short runs, fewer rates and six tasks
	$(BIN)/python -m scripts.study quick

paper: $(STAMP) ## The figures of the paper at its lengths, for a GPU; resumable, days
	$(BIN)/python -m scripts.paper all

paper-quick: $(STAMP) ## The same figures from short runs (two cores, under an hour)
	$(BIN)/python -m scripts.paper all --quick

gpu: $(STAMP) ## Run the tests and benchmarks that need a CUDA device (eight minutes)
	PYTHON=$(BIN)/python scripts/gpu/check.sh

report: $(STAMP) ## Tables, plots and a page of all runs under outputs/
	$(BIN)/gnewton compare outputs --html

docs: $(STAMP) ## Build the documentation site into outputs/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs-options: $(STAMP) ## Write docs/options.md, the table of all options
	$(BIN)/python -m scripts.options_page

clean: ## Remove caches and builds; keeps .venv, data/ and outputs/
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
