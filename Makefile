# Shorthand for the commands that build, test and run actnn. Everything it does is in tools/ and CMakePresets.json.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Parallel compilations; one that includes torch headers takes up to 2 GB of memory.
JOBS ?= $(shell nproc)
# Options of `actnn train`, e.g. make train ARGS="--epochs 2".
ARGS ?=

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: bootstrap
bootstrap:
	@tools/bootstrap

# CMake reconfigures by itself when a CMake file changes.
build/build.ninja: | bootstrap
	cmake --preset release

build-sanitize/build.ninja: | bootstrap
	cmake --preset sanitize

.PHONY: train
train: bootstrap build/build.ninja ## install, build, fetch Fashion-MNIST and train; options in ARGS="..."
	cmake --build build --parallel $(JOBS) --target actnn_app
	tools/fetch-fashion-mnist
	build/bin/actnn train $(ARGS)

.PHONY: build
build: bootstrap build/build.ninja ## the library, the program, tests and benchmarks, in build/
	cmake --build build --parallel $(JOBS)

.PHONY: test
test: build ## all C++ and Python tests
	@status=0; \
	echo "== C++ tests"; ctest --test-dir build --output-on-failure --parallel $(JOBS) --no-tests=error || status=1; \
	echo "== Python tests"; .venv/bin/python -m pytest || status=1; \
	exit $$status

.PHONY: sanitize
sanitize: build-sanitize/build.ninja ## tests of the kernels with the address and undefined-behaviour sanitizers
	cmake --build build-sanitize --parallel $(JOBS)
	ctest --test-dir build-sanitize --output-on-failure --parallel $(JOBS) --no-tests=error

.PHONY: bench
bench: bootstrap build/build.ninja ## CPU kernels against memcpy; table and benchmarks/results/cpu_kernels.json
	cmake --build build --parallel $(JOBS) --target cpu_kernels_benchmark
	mkdir -p benchmarks/results
	build/bin/cpu_kernels_benchmark --output benchmarks/results/cpu_kernels.json

.PHONY: lint
lint: ## formatting, static analysis of what changed, floors
	@tools/bootstrap lint
	@cmake --preset release --log-level=WARNING
	tools/lint

.PHONY: format
format: ## rewrite C++ and Python sources in the project's format
	@tools/bootstrap lint
	tools/lint --fix

.PHONY: clean
clean: ## remove the build folders; .venv, data and runs stay
	rm -rf build build-dev build-sanitize
