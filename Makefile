# Two commands for a newcomer: `make demo` and `make test`. Each sets up in .venv what it needs, once,
# and no more: a demo is a small part of what tests need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.ready-demo
DEV := $(VENV)/.ready-dev
BROWSER := $(VENV)/.ready-browser
NATIVE := $(shell find native -type f) CMakeLists.txt pyproject.toml

.PHONY: help setup demo test test-checked test-long test-programs test-gpu soak torture check sanitize format bench clean

help:
	@echo "make setup      all that the targets below need; each of them also sets up what it needs"
	@echo "make demo       train a DLRM through HBM, DDR and RocksDB, with a live picture"
	@echo "make test       the whole test suite (6 minutes on two idle cores)"
	@echo "make test-checked  planner, engine and model tests with the native contracts checked"
	@echo "make test-long  the full equality matrix and other long runs"
	@echo "make test-programs  1,500 drawn training programs beside the same ones of torch"
	@echo "make test-gpu   the HBM tier on a CUDA device"
	@echo "make soak       two minutes of training, watched for growth and drift"
	@echo "make torture    kills, power losses, full disks, flipped bits, hostile input (30 minutes)"
	@echo "make check      formatting, lint, types, layers"
	@echo "make sanitize   native/tests under ThreadSanitizer, then AddressSanitizer and UBSan"
	@echo "make format     rewrite files as 'make check' wants them"
	@echo "make bench      the benchmarks at full size (disk: 25 GB, more than an hour)"

setup: $(DEV) $(BROWSER)

# librocksdb-dev is wanted, not needed: without it the SSD tier is the rocksdb-py wheel.
$(DEMO): $(NATIVE)
	@tools/setup.sh "$(PYTHON)" "$(VENV)" demo
	@touch $@

# Contains the demo's part.
$(DEV): $(NATIVE)
	@tools/setup.sh "$(PYTHON)" "$(VENV)" dev
	@touch $(DEMO) $@

$(BROWSER): | $(DEV)
	@tools/setup.sh "$(PYTHON)" "$(VENV)" browser
	@touch $@

demo: $(DEMO)
	$(BIN)/python -m tiered_embed.examples.demo --out demo_out

test: $(DEV) $(BROWSER)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not gpu"

# What drives the planner, the record arrays and the kernels; the rest of the suite adds nothing.
CHECKED := tests/residency tests/engine tests/model tests/tiers tests/kernels/test_choice.py \
  tests/promises/test_three_tiers.py tests/modules/test_max_pooling.py
test-checked: $(DEV)
	tools/test_checked.sh $(BIN)/python -n 2 --dist worksteal -m "not long and not gpu" $(CHECKED)

test-long: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

test-programs: $(DEV)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long tests/promises/test_programs.py

test-gpu: $(DEV)
	$(BIN)/python -m pytest -m gpu tests/gpu

soak: $(DEV)
	$(BIN)/python benchmarks/soak --minutes 2

torture: $(DEV)
	$(BIN)/python tests/faults/torture.py --json benchmarks/results/torture.json

check: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/imports.py --check docs/imports.svg
	find native -name '*.h' -o -name '*.cc' -o -name '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror

# Needs no Python: a compiler and CMake.
sanitize:
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/sanitize.sh

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find native -name '*.h' -o -name '*.cc' -o -name '*.inc' | xargs $(BIN)/clang-format -i

bench: $(DEV)
	$(BIN)/python benchmarks/training all --json benchmarks/results/training.json
	$(BIN)/python benchmarks/kernels --json benchmarks/results/kernels.json
	$(BIN)/python benchmarks/evaluation memory --json benchmarks/results/evaluation.json
	$(BIN)/python benchmarks/evaluation below --json benchmarks/results/evaluation_below.json
	$(BIN)/python benchmarks/many_tables --json benchmarks/results/many_tables.json
	$(BIN)/python benchmarks/prefetch all --json benchmarks/results/prefetch.json
	$(BIN)/python benchmarks/planning --json benchmarks/results/planning.json
	$(BIN)/python benchmarks/store all --json benchmarks/results/store.json
	$(BIN)/python benchmarks/simulate --json benchmarks/results/simulate.json
	$(BIN)/python benchmarks/hbm overhead --json benchmarks/results/hbm_overhead.json
	$(BIN)/python benchmarks/soak --json benchmarks/results/soak.json

clean:
	rm -rf $(VENV) build demo_out
