# Two commands do everything: `make train` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install train compare test test-fast lint bench clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / \t/' | expand -t 16

install: $(STAMP)  ## build the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,sweep,report]'
	touch $@

train: $(STAMP)   ## train DDPM on the embedded digits (two minutes on a CPU); ARGS="formulation=ncsn" for others
	$(BIN)/python train.py trainer.max_steps=1700 $(ARGS)

compare: $(STAMP)  ## train, measure and compare seven formulations on one page; goes on where it was cut off
	$(BIN)/python tools/demonstrate.py runs/compare $(ARGS)

test: $(STAMP)    ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-fast: $(STAMP)  ## run the fast tests, under two minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

lint: $(STAMP)    ## ruff and pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: $(STAMP)   ## the benchmarks, beside the peers they are compared with
	for name in training optimizer overhead samplers frechet data report startup; do $(BIN)/python bench/$$name.py || exit 1; done

clean:           ## remove the environment and caches; runs stay
	rm -rf $(VENV) .pytest_cache .ruff_cache
