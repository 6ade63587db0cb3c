# Two commands for a newcomer: `make demo` and `make test`. Everything they need they set up
# themselves, once, in .venv; both reuse it afterwards.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(shell find native -type f) CMakeLists.txt pyproject.toml

.PHONY: help setup demo test test-checked test-long test-gpu soak torture check sanitize format bench clean

help:
	@echo "make demo       train a DLRM through HBM, DDR and RocksDB, with a live picture"
	@echo "make test       the whole test suite (under 5 minutes on two cores)"
	@echo "make test-checked  planner, engine and model tests with the native contracts checked"
	@echo "make test-long  the full equality matrix and other long runs"
	@echo "make test-gpu   the HBM tier on a CUDA device"
	@echo "make soak       a minute of training, watched for growth and drift"
	@echo "make torture    kills, power losses, full disks, flipped bits, hostile input (30 minutes)"
	@echo "make check      formatting, lint, types"
	@echo "make sanitize   native/tests under ThreadSanitizer, then AddressSanitizer and UBSan"
	@echo "make format     rewrite files as 'make check' wants them"
	@echo "make bench      the benchmarks at full size (disk: 25 GB, more than an hour)"

setup: $(READY)

# librocksdb-dev is wanted, not needed: without it the SSD tier is the rocksdb-py wheel.
$(READY): $(NATIVE)
	@tools/setup.sh "$(PYTHON)" "$(VENV)"
	@touch $@

demo: $(READY)
	$(BIN)/python -m tiered_embed.examples.demo --out demo_out

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long and not gpu"

# What drives the planner, the record arrays and the kernels; the rest of the suite adds nothing.
CHECKED := $(wildcard tests/residency tests/engine tests/model) $(wildcard $(addprefix tests/test_, \
  planner.py parallel_planning.py lower_tier.py policies.py pipeline.py write_buffer.py moves.py \
  three_tiers.py updates.py kernels.py max_pooling.py))
test-checked: $(READY)
	tools/test_checked.sh $(BIN)/python -n 2 --dist worksteal -m "not long and not gpu" $(CHECKED)

test-long: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu tests/gpu

soak: $(READY)
	$(BIN)/python benchmarks/soak.py --minutes 1

torture: $(READY)
	$(BIN)/python tests/faults/torture.py --json benchmarks/results/torture.json

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	find native -name '*.h' -o -name '*.cc' -o -name '*.inc' | xargs $(BIN)/clang-format --dry-run --Werror

# Without $(READY): it needs a compiler and CMake, no Python.
sanitize:
	PATH="$(CURDIR)/$(BIN):$$PATH" tools/sanitize.sh

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	find native -name '*.h' -o -name '*.cc' -o -name '*.inc' | xargs $(BIN)/clang-format -i

bench: $(READY)
	$(BIN)/python benchmarks/training.py all --json benchmarks/results/training.json
	$(BIN)/python benchmarks/kernels.py --json benchmarks/results/kernels.json
	$(BIN)/python benchmarks/prefetch.py all --json benchmarks/results/prefetch.json
	$(BIN)/python benchmarks/planning.py --json benchmarks/results/planning.json
	$(BIN)/python benchmarks/store.py --json benchmarks/results/store.json
	$(BIN)/python benchmarks/simulate.py --json benchmarks/results/simulate.json
	$(BIN)/python benchmarks/hbm.py overhead --json benchmarks/results/hbm_overhead.json
	$(BIN)/python benchmarks/soak.py --json benchmarks/results/soak.json

clean:
	rm -rf $(VENV) build demo_out
