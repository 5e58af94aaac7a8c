# A thin front of the CMake presets. `make help` lists the targets.
SHELL := /bin/bash -o pipefail
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Install what the benchmark needs, build, and say which method is fastest on this machine
	@scripts/install-dependencies demo
	@$(MAKE) build
	build/shunt bench alltoall --ranks 2 --preset v2-lite --preset r1 --routing uniform --routing text:data/text/kjv.txt

.PHONY: test
test: ## Install what the tests need, build, and run unit, conformance, sweep and kill tests (25 minutes at most)
	@scripts/install-dependencies demo test peers
	cmake --preset ci
	cmake --build --preset ci
	ctest --preset ci

.PHONY: test-deep
test-deep: ## Sanitizers, a second compiler, lint, fuzzing, cross compilation (50 minutes at most)
	@scripts/install-dependencies demo test peers deep
	@scripts/test-deep

.PHONY: build
build: ## Build build/shunt (nothing is installed; `scripts/install-dependencies demo` does that)
	cmake --preset release
	cmake --build --preset release

.PHONY: bench
bench: build ## Run the whole published benchmark: 2, 4 and 8 ranks, both models, bf16 and fp8
	@scripts/bench

.PHONY: gpu-test
gpu-test: ## Build with CUDA and run the tests for GPUs; they skip, with the reason, where there is no GPU
	@scripts/install-dependencies demo test
	cmake --preset cuda
	cmake --build --preset cuda --target gpu_tests
	ctest --preset gpu --verbose
	scripts/gpu-sanitize build-cuda/tests

.PHONY: gpu-bench
gpu-bench: ## Build with CUDA and measure packing, alltoall and overlap on a GPU (8 minutes); without one, the CPU
	@scripts/install-dependencies demo test
	cmake --preset cuda
	cmake --build --preset cuda --target shunt_cli
	scripts/gpu-bench

.PHONY: gpu-package
gpu-package: ## Put the tests and benchmarks for GPUs into gpu-package/, to be run where only a driver is
	@scripts/gpu-package

.PHONY: lint
lint: ## clang-format and clang-tidy over the sources
	@scripts/install-dependencies demo test peers deep
	@scripts/test-deep format tidy

.PHONY: format
format: ## Rewrite the sources with clang-format
	@scripts/format

.PHONY: install
install: build ## Install to PREFIX (default /usr/local): the command, the libraries, the CMake package
	cmake --install build $(if $(PREFIX),--prefix $(PREFIX))

.PHONY: clean
clean: ## Remove every build folder
	rm -rf build build-*
