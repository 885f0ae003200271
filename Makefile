# watchrank. `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3.11
VENV := .venv
TRITON_VENV := .venv-triton
BIN := $(VENV)/bin

CONFIG ?= pipelines/configs/local.yaml
DATA ?=
SOURCE ?= own
STUDY ?=
SEEDS ?=
WORKSPACE ?= work/$(if $(DATA),$(SOURCE),simulated)
SET ?=

ARGUMENTS = --workspace $(WORKSPACE) --config $(CONFIG) $(if $(DATA),--data $(DATA) --source $(SOURCE)) $(foreach setting,$(SET),--set $(setting))

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo 'make run DATA=<folder> SOURCE=own|kuairand runs on your log; SET="training.epochs=3 ..." changes settings.'

$(VENV)/done: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	touch $@

$(TRITON_VENV)/done: infra/triton_local/requirements.txt
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

.PHONY: env
env: $(VENV)/done $(TRITON_VENV)/done  ## make the environments: the project's, and Triton's own

.PHONY: run
run: env  ## raw logs to Triton's answers: simulate (or DATA=, SOURCE=), train, export, deploy, recommend
	$(BIN)/watchrank-pipelines run $(ARGUMENTS)

.PHONY: serve
serve: env  ## keep Triton up on the last release and say how to query it
	$(BIN)/watchrank serve --workspace $(WORKSPACE)

.PHONY: test
test: env  ## all tests but the slow ones
	$(BIN)/python -m pytest -m 'not slow'

.PHONY: test-slow
test-slow: env  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

.PHONY: study
study: env  ## compare variants over seeds, after `make run`: STUDY=hidden|inputs|objective|weighting|depth|example_age|tied|diversity; alone: multi_task SEEDS=50
	$(if $(filter multi_task,$(STUDY)),,$(BIN)/watchrank $(if $(filter depth example_age tied,$(STUDY)),candidate-dataset,dataset) --workspace $(WORKSPACE) --config $(CONFIG))
	$(BIN)/watchrank study $(STUDY) $(if $(SEEDS),--seeds $(SEEDS)) --workspace $(WORKSPACE) $(foreach setting,$(SET),--set $(setting))

$(VENV)/bench: $(VENV)/done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[bench]'
	touch $@

.PHONY: bench
bench: env $(VENV)/bench  ## speed of training and serving, beside other libraries; about half an hour
	$(BIN)/python tests/benchmarks/training_throughput.py
	$(BIN)/python tests/benchmarks/large_embeddings.py
	$(BIN)/python tests/benchmarks/candidate_throughput.py
	$(BIN)/python tests/benchmarks/index.py --threads 1
	$(BIN)/python tests/benchmarks/recommend_latency.py
	$(BIN)/python tests/benchmarks/switching_load.py

.PHONY: bench-data
bench-data: env  ## time and memory of the data path at 1 and 10 million impressions, beside pandas and Feast's file store
	$(BIN)/python tests/benchmarks/data_path.py sizes 1000000 10000000
	$(BIN)/python tests/benchmarks/data_path.py incremental 1000000

.PHONY: bench-quality
bench-quality: env $(VENV)/bench  ## the ranker beside LightGBM on WORKSPACE, after `make run`
	$(BIN)/watchrank dataset --workspace $(WORKSPACE) --config $(CONFIG)
	$(BIN)/python tests/benchmarks/ranking_quality.py $(WORKSPACE) $(SET)

.PHONY: sizes
sizes: env  ## what the Python environment of each image weighs; minutes each
	$(BIN)/python tests/benchmarks/image_sizes.py

.PHONY: lint
lint: env  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: env  ## let ruff lay out the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: compile
compile: env  ## write the pipelines' YAML for the Kubeflow UI to build/pipelines
	$(BIN)/watchrank-pipelines compile --output build/pipelines

.PHONY: lock
lock: $(VENV)/done  ## write requirements.lock from the environment, without the CUDA packages
	$(BIN)/python -m pip freeze --exclude-editable --exclude watchrank | grep -vE '^(nvidia-|cuda-|triton==)' \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; /^-e /d; / @ /d' > requirements.lock

.PHONY: clean
clean:  ## remove the workspace and build output
	rm -rf $(WORKSPACE) build
