# watchrank. `make` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3.11
VENV := .venv
TRITON_VENV := .venv-triton
TOOLS := .venv-tools
BIN := $(VENV)/bin

CONFIG ?= pipelines/configs/local.yaml
DATA ?=
SOURCE ?= own
STUDY ?=
SEEDS ?=
WORKSPACE ?= work/$(if $(DATA),$(SOURCE),simulated)
SET ?=
JOBS ?= 2
KILLS ?= 20
MINUTES ?= 30

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
test: env  ## all tests but the slow ones, in JOBS=2 processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not slow and not faults'

.PHONY: test-slow
test-slow: env  ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow

.PHONY: test-faults
test-faults: env  ## KILLS=20 of every stage, full disks, runs at once, a soak of MINUTES=30; about two hours
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m faults --kills $(KILLS) --soak-minutes $(MINUTES) -rP

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
	$(BIN)/python tests/benchmarks/training_shares.py
	$(BIN)/python tests/benchmarks/large_embeddings.py
	$(BIN)/python tests/benchmarks/candidate_throughput.py
	$(BIN)/python tests/benchmarks/index.py --threads 1
	$(BIN)/python tests/benchmarks/recommend_latency.py
	$(BIN)/python tests/benchmarks/switching_load.py

.PHONY: bench-data
bench-data: env  ## time and memory of the data path at 1 and 10 million impressions, beside pandas and Feast's file store; a day more; a million users online
	$(BIN)/python tests/benchmarks/data_path.py sizes 1000000 10000000
	$(BIN)/python tests/benchmarks/data_path.py incremental 10000000
	$(BIN)/python tests/benchmarks/online_reads.py

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

$(TOOLS)/done: Makefile
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3' 'pip-licenses>=5,<6' 'uv>=0.8'
	touch $@

.PHONY: lock
lock: $(VENV)/done $(TOOLS)/done  ## write requirements.lock from the environment, without the CUDA packages, and its hashes
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude watchrank --exclude pip --exclude wheel \
	  | grep -vE '^(nvidia-|cuda-|triton==)' \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; /^-e /d; / @ /d' > requirements.lock
	grep -v '^torch==' requirements.lock | $(TOOLS)/bin/uv pip compile - --quiet --generate-hashes --no-deps --no-header \
	  --no-annotate --python-version 3.11 --output-file requirements-hashes.lock > /dev/null

.PHONY: verify-lock
verify-lock: $(TOOLS)/done  ## fetch every locked file but torch's and hold it against its hash; gigabytes
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && $(TOOLS)/bin/python -m pip download --quiet --no-deps \
	  --require-hashes --requirement requirements-hashes.lock --dest "$$folder" && echo 'Every file has its hash.'

.PHONY: audit
audit: $(TOOLS)/done  ## known vulnerabilities of the locked packages; asks a database on the network
	@$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip --requirement requirements.lock || { \
	  echo 'Not passed: raise the versions named above, or, if a package was not found, run it where pypi.org answers.' >&2; \
	  exit 1; }

.PHONY: licences
licences: $(VENV)/done $(TOOLS)/done  ## the licences of the packages in the environment
	$(TOOLS)/bin/pip-licenses --python=$(BIN)/python --from=mixed --order=license

.PHONY: clean
clean:  ## remove the workspace and build output
	rm -rf $(WORKSPACE) build
