# make run, make test, make lab: the README says what each does.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NOTEBOOK ?=
PARAMS ?=
PARAMETERS ?=
DATA ?=
ROW ?=

.PHONY: help run test soak bench lab notebooks lock verify-hub clean

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(READY) ## execute every notebook (NOTEBOOK=name, PARAMS="-p epochs 1", PARAMETERS=folder)
	@$(BIN)/python -m helpers.runner $(if $(NOTEBOOK),--notebook $(NOTEBOOK)) \
	  $(if $(PARAMETERS),--parameters $(PARAMETERS)) $(PARAMS)

test: $(READY) ## all tests, about 20 minutes on two quiet cores
	@$(BIN)/python -m pytest

soak: $(READY) ## what takes longer than make test: kills, volumes, fault rounds
	@$(BIN)/python -m pytest -m soak

bench: $(READY) ## the benchmarks on embedded data (ROW=name, DATA=folder)
	@$(BIN)/python -m benchmarks $(if $(ROW),--row $(ROW)) $(if $(DATA),--data $(DATA))

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=notebooks

notebooks: $(READY) ## execute all notebooks at their defaults for committing
	@$(BIN)/python -m helpers.runner $(if $(NOTEBOOK),--notebook $(NOTEBOOK)) --commit

verify-hub: $(READY) ## check the model card's own scores, where the Hub is reachable
	@$(BIN)/python -m tests.verify_hub

lock: ## make requirements.lock anew from environment.yml
	@bash .ci/lock

clean: ## remove the environment and all results
	rm -rf $(VENV) runs .pytest_cache .hypothesis

$(READY): requirements.lock pyproject.toml
	@bash .ci/setup $(VENV)
	@touch $@
