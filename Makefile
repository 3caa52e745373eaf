# Shorthand for the commands that build, test and run actnn. Everything it does is in tools/ and CMakePresets.json.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Parallel compilations; one that includes torch headers takes up to 1 GB of memory.
export JOBS ?= $(shell nproc)
# Options of `actnn train`, e.g. make train ARGS="--epochs 2", make train ARGS="--model gpt".
ARGS ?=
# Another version of torch than the pinned one, e.g. make test TORCH=2.15.0, in an environment and a build folder of its own.
export TORCH ?=
VENV := .venv$(addprefix -torch-,$(TORCH))
BUILD := build$(addprefix -torch-,$(TORCH))
# Options of pytest, e.g. make test PYTEST="-m 'not slow'".
PYTEST ?=

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: bootstrap
bootstrap:
	@tools/bootstrap

# CMake reconfigures by itself when a CMake file changes.
$(BUILD)/build.ninja: | bootstrap
	@tools/configure $(BUILD) -DACTNN_PYTHON=$(CURDIR)/$(VENV)/bin/python

build-sanitize/build.ninja: | bootstrap
	@cmake --preset sanitize --log-level=WARNING

.PHONY: train
train: ## install, build, fetch data and train; options in ARGS="..."
	@TORCH= tools/train $(ARGS)

.PHONY: build
build: bootstrap $(BUILD)/build.ninja ## the library, the program, tests and benchmarks, in build/
	@tools/build $(BUILD)

.PHONY: test
test: build ## all C++ and Python tests; TORCH=2.15.0: with that version
	@tools/bootstrap models
	@status=0; \
	echo "== C++ tests"; ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS) --no-tests=error || status=1; \
	echo "== Python tests"; ACTNN_BUILD_DIR=$(BUILD) $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST) || status=1; \
	exit $$status

.PHONY: sanitize
sanitize: build-sanitize/build.ninja ## tests of the kernels with the address and undefined-behaviour sanitizers
	@tools/build build-sanitize
	ctest --test-dir build-sanitize --output-on-failure --parallel $(JOBS) --no-tests=error

.PHONY: bench
bench: bootstrap $(BUILD)/build.ninja ## CPU kernels against memcpy; table and benchmarks/results/cpu_kernels.json
	@tools/build $(BUILD) cpu_kernels_benchmark
	mkdir -p benchmarks/results
	$(BUILD)/bin/cpu_kernels_benchmark --output benchmarks/results/cpu_kernels.json

.PHONY: lint
lint: ## formatting, static analysis of what changed, floors
	@tools/bootstrap lint
	tools/lint

.PHONY: format
format: ## rewrite C++ and Python sources in the project's format
	@tools/bootstrap lint
	tools/lint --fix

.PHONY: clean
clean: ## remove the build folders; environments, data and runs stay
	rm -rf build build-*
