# `make help` lists the targets. Everything installs into .venv; services for tests go to .services.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
TEST_ARGS ?=
# Tests wait about as much as they compute: one process more than there are cores, and no more brokers than that.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() + 1))')
PERF := kernels pipeline drift_counts drift scoring burst cold_start entities faults batches native_model cascade replay soak

.DEFAULT_GOAL := help
.PHONY: help install services demo test check format perf proto clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## an environment in .venv with everything in it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Paywarden needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@# setuptools warns of every editable install that it is one.
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,perf]'
	@echo "compiling the feature kernel, once"
	$(BIN)/python -c 'from features.engine import FeatureEngine; FeatureEngine().warm_up()'
	$(BIN)/python -c 'from streams.fast_intake import warm_up; warm_up()'
	$(BIN)/python -c 'from scoring import answered as a, fast_requests as f, records as r; a.warm_up(); f.warm_up(); r.warm_up()'
	@touch $@

services: install ## fetch Kafka and the schema registry for tests (needs a Java 17 JDK and Maven)
	$(BIN)/python -m tests.services.fetch

demo: install ## the whole product on this machine: DEMO_ARGS="--seconds 20 --json FILE"
	$(BIN)/paywarden demo $(DEMO_ARGS)

test: services ## every test, on a real Kafka: TEST_ARGS="-k name"
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

check: install ## lint, types, import layers, generated code and pages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m ops.reference --check
	@$(MAKE) --no-print-directory proto OUT=$(VENV)/proto
	@for file in schemas/*_pb2.py schemas/*_pb2.pyi; do \
		cmp -s $$file $(VENV)/proto/$$file || { echo "$$file is not what its .proto gives: make proto" >&2; exit 1; }; done

format: install ## put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

perf: install ## the benchmarks, one after the other
	@for name in $(PERF); do $(BIN)/python -m perf.$$name || exit 1; done

OUT := .
proto: install ## generate schemas/*_pb2.py from the .proto files
	@mkdir -p $(OUT)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=$(OUT) --pyi_out=$(OUT) schemas/*.proto

clean: ## remove the environment, the services and all caches
	rm -rf $(VENV) .services .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
