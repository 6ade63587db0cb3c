#!/usr/bin/env bash
# Builds native/tests with sanitizers and contract checks, and runs it; fails on the first finding.
# The part `memory` has every allocation of the native entries fail once.
# Usage: tools/sanitize.sh [argument of stress]..., for example `tools/sanitize.sh --seed 7 pipeline`.
set -euo pipefail
cd "$(dirname "$0")/.."

export TSAN_OPTIONS="halt_on_error=1 exitcode=66 suppressions=native/tests/tsan.supp"
# No frames for use-after-return: GCC 12 stores AVX-512 registers there with vmovaps, unaligned.
export ASAN_OPTIONS="halt_on_error=1 exitcode=66 detect_stack_use_after_return=0"
export UBSAN_OPTIONS="print_stacktrace=1 exitcode=66"

for sanitizers in thread address,undefined; do
  build=build/sanitize-${sanitizers/,/-}
  cmake -S . -B "$build" -DTE_PYTHON=OFF -DTE_TESTS=ON -DTE_CHECKS=ON -DTE_SANITIZE=$sanitizers \
    -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 >/dev/null
  cmake --build "$build" --target stress --parallel "$(nproc)" >/dev/null
  echo "== $sanitizers"
  "$build/native/tests/stress" --seconds 4 "$@"
done
