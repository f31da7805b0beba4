# `make help` lists the targets. Everything installs into .venv; services for tests go to .services.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Half of what `paywarden demo` does by default: a second run ends within 45 s.
DEMO_ARGS ?= --seconds 15
TEST_ARGS ?=
# Tests wait much of their time: five processes keep two cores busy, and seven end no earlier. Each needs 1 GB.
TEST_PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(8, 5 * os.cpu_count() // 2))')
PERF := whole kernels pipeline drift_counts drift scoring companion overload swap shadow callers gateway clients rollout cold_start faults native_model replay soak overlay console tables spark

# Tests start hundreds of processes. Where PYTHONDONTWRITEBYTECODE is set, each would compile all that it imports.
export PYTHONDONTWRITEBYTECODE =
export PYTHONPYCACHEPREFIX = $(CURDIR)/$(VENV)/pycache

.DEFAULT_GOAL := help
# The one that takes longest first.
CHECKS := check-types check-clients check-style check-imports check-pages check-proto check-contract
.PHONY: help install services demo test fuzz check ready format perf proto generated clean $(CHECKS)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Python compiles what it imports: to compile every file of every package takes longer than the whole download.
# setuptools warns of every editable install that it is one.
PIP := PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --no-compile --disable-pip-version-check --no-deps
# The packages of extras, each file checked against constraints.txt: $(call packages,demo dev).
packages = $(PYTHON) ops/deploy/requirements.py $(1) > $@.txt && $(PIP) --require-hashes --requirement $@.txt

# What runs beside what: packages come while numba compiles. `make ready` checks meanwhile, too.
BESIDE := @$(MAKE) --no-print-directory --jobs

install: ## an environment in .venv with everything in it
	$(BESIDE) 2 $(VENV)/.installed

$(VENV)/.installed: $(VENV)/.packages $(VENV)/.compiled
	@touch $(VENV)/.demo-packages $(VENV)/.demo-installed $@

# The demo needs fewer packages.
$(VENV)/.demo-installed: $(VENV)/.demo-packages $(VENV)/.compiled
	@touch $@

$(VENV)/.base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Paywarden needs Python 3.11 or newer; set PYTHON=…" >&2; exit 1; }
	@echo "1 of 3: making an environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "2 of 3: installing what every process needs (100 MB to fetch)"
	@$(call packages,base)
	@$(PIP) --no-build-isolation --editable .
	@echo "3 of 3: installing the rest (150 MB to fetch or more), compiling meanwhile (half a minute or more)"
	@touch $@

$(VENV)/.demo-packages: $(VENV)/.base
	@$(call packages,demo)
	@touch $@

# What tests and benchmarks need besides; and the checkout under its installed name, for mypy and protoc.
$(VENV)/.packages: $(VENV)/.base
	@$(call packages,demo dev perf)
	@mkdir -p $(VENV)/checkout && ln -sfn ../.. $(VENV)/checkout/paywarden
	@touch $@

# The packages that all the others come with are enough to compile the feature kernel.
$(VENV)/.compiled: $(VENV)/.base
	@$(BIN)/paywarden compile
	@touch $@

services: install ## fetch Kafka, the schema registry, S3 (with a Java 17 JDK and Maven) and helm for tests
	$(BIN)/python -m tests.services.fetch
	$(BIN)/python -m tests.services.deploy_tools

demo: ## the whole product on this machine: DEMO_ARGS="--seconds 20 --json FILE"
	$(BESIDE) 2 $(VENV)/.demo-installed
	$(BIN)/paywarden demo $(DEMO_ARGS)

test: services ## every test, on a real Kafka: TEST_ARGS="-k name"
	$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.fuzz ## run each fuzz target for FUZZ_SECONDS (60), guided by coverage
	@for name in $$($(BIN)/python -m tests.fuzz --list); do \
		$(BIN)/python -m tests.fuzz --target $$name --seconds $(FUZZ_SECONDS) || exit 1; done

$(VENV)/.fuzz: $(VENV)/.installed
	@$(call packages,fuzz)
	@touch $@

# Types take as long as all other checks together: two at once.
check: install ## lint, types, import layers, generated code and pages
	$(BESIDE) 2 --output-sync=target $(CHECKS)

# The checks begin when the packages are there, and run while the last code is compiled.
ready: ## what CI does first: install and check, side by side
	$(BESIDE) 3 --output-sync=target $(VENV)/.installed $(CHECKS)

$(CHECKS): $(VENV)/.packages

# Types and compilation take longest. The other checks have what these leave of the cores.
LATER := nice -n 10

# The pages call compiled code, which would be compiled twice.
check-pages: $(VENV)/.compiled

check-types:
	$(BIN)/mypy

check-style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check-imports:
	$(LATER) $(BIN)/lint-imports

check-pages:
	$(BIN)/python -m paywarden.ops.reference --check

check-proto:
	@$(MAKE) --no-print-directory generated OUT=$(VENV)/proto
	@for file in schemas/proto/*_pb2.py schemas/proto/*_pb2.pyi; do \
		cmp -s $$file $(VENV)/proto/$$file || { echo "$$file is not what its .proto gives: make proto" >&2; exit 1; }; done

# Callers are built with the released contract: whatever would break them or their requests is refused. PACKAGE is about
# names, numbers, types and methods, and not about files.
CONTRACT := schemas/proto/scoring.proto
check-contract:
	@if test -x $(BIN)/buf; then \
		$(BIN)/buf breaking $(CONTRACT) --against schemas/proto/released/scoring.proto \
			--config '{"version": "v2", "breaking": {"use": ["PACKAGE"]}}'; \
	else echo "the contract is not compared with the released one: buf is missing (pip install buf-bin)"; fi

# The Python client runs on older versions of Python than the rest.
check-clients:
	MYPYPATH=ops/clients/python $(LATER) $(BIN)/mypy --python-version 3.10 --config-file= --strict \
		--package paywarden_client --module driver
	$(LATER) $(BIN)/python -m tests.services.clients.client_drivers

format: install ## put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

perf: install ## the benchmarks, one after the other
	@for name in $(PERF); do $(BIN)/python -m perf.$$name || exit 1; done

OUT := .
proto: install generated ## generate schemas/proto/*_pb2.py from the .proto files

generated:
	@rm -rf $(VENV)/generated && mkdir -p $(VENV)/generated $(OUT)/schemas/proto
	$(BIN)/python -m grpc_tools.protoc -I$(VENV)/checkout --python_out=$(VENV)/generated --pyi_out=$(VENV)/generated \
		$(VENV)/checkout/paywarden/schemas/proto/*.proto
	@cp $(VENV)/generated/paywarden/schemas/proto/* $(OUT)/schemas/proto/

clean: ## remove the environment, the services and all caches
	rm -rf $(VENV) .services .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
