#!/usr/bin/env bash
# Installs what one part of the project needs. Usage: tools/setup.sh PYTHON VENV demo|dev|browser
#   demo     a virtual environment with the package built into it, and what `make demo` needs
#   dev      the same, and what tests, checks and benchmarks need
#   browser  chromium, in which one test opens the simulator's report; without it that test skips
# The Makefile runs each part once. Nothing else in the project installs anything.
set -euo pipefail
python=$1 venv=$2 part=$3
cd "$(dirname "$0")/.."
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

have_rocksdb() { [ -e /usr/include/rocksdb/db.h ] || [ -e /usr/local/include/rocksdb/db.h ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 1
  fi
}

# Installs packages where apt exists and may be used; the caller checks what came of it.
try_apt() {
  command -v apt-get >/dev/null || return 0
  echo "setup: installing $1"
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq "$@" >/dev/null; } || true
}

# Builds the package into the virtual environment, with the extras that are named.
install_package() {
  "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
    echo "setup: this is $("$python" --version); Python 3.10 to 3.13 is needed: make PYTHON=..." >&2
    exit 1
  }
  have_rocksdb || try_apt librocksdb-dev g++
  if have_rocksdb; then
    echo "setup: the SSD tier will be RocksDB (librocksdb-dev)"
  else
    echo "setup: librocksdb-dev is not here; the SSD tier will be the rocksdb-py wheel"
  fi
  if ! command -v c++ >/dev/null; then
    echo "setup: a C++17 compiler is needed: apt-get install g++" >&2
    exit 1
  fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  # The exact torch first: a looser requirement would fetch another release.
  "${pip[@]}" install -q torch==2.13.0
  build=(ninja 'nanobind>=2.4' 'scikit-build-core>=0.10')
  cmake=$(cmake --version 2>/dev/null | sed -n '1s/.* //p') || true
  if [ "$(printf '%s\n' 3.20 "${cmake:-0}" | sort -V | head -n 1)" != 3.20 ]; then
    build+=('cmake>=3.20')
  fi
  "${pip[@]}" install -q "${build[@]}"
  "${pip[@]}" install -q --no-build-isolation -e ".[$1]"
}

setup_demo() { install_package demo; }

setup_dev() {
  install_package cpu,demo,dev,models,sim,trainers
  # Without its dependencies: they name fbgemm-gpu, which would overwrite fbgemm-gpu-cpu. The ones
  # that it imports are in the extra `models`.
  "${pip[@]}" install -q --no-deps torchrec==1.9.2
}

setup_browser() {
  command -v chromium >/dev/null || command -v google-chrome >/dev/null || try_apt chromium
}

case $part in
  demo | dev | browser) "setup_$part" ;;
  *) echo "setup: the part is '$part'; choose demo, dev or browser" >&2; exit 2 ;;
esac
