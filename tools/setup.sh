#!/usr/bin/env bash
# Sets up a virtual environment with everything that the demo, the tests and the checks need, and
# builds the package into it. Usage: tools/setup.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."

have_rocksdb() { [ -e /usr/include/rocksdb/db.h ] || [ -e /usr/local/include/rocksdb/db.h ]; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"
  else return 1
  fi
}

if ! have_rocksdb && command -v apt-get >/dev/null; then
  echo "setup: installing librocksdb-dev"
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq librocksdb-dev g++ >/dev/null; } || true
fi
if have_rocksdb; then
  echo "setup: SSD tier by RocksDB (librocksdb-dev)"
else
  echo "setup: no librocksdb-dev here: the SSD tier will be the rocksdb-py wheel"
fi
# The simulator's page is tested in a browser; without one that test skips, but not in CI.
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null \
    && command -v apt-get >/dev/null; then
  echo "setup: installing chromium"
  { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq chromium >/dev/null; } || true
fi
if ! command -v c++ >/dev/null; then
  echo "setup: a C++17 compiler is needed (apt-get install g++)" >&2
  exit 1
fi

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || {
  echo "setup: $("$python" --version) found; Python 3.10 to 3.13 is needed (make PYTHON=...)" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# The exact torch first: a looser requirement would fetch another release.
"${pip[@]}" install -q torch==2.13.0
"${pip[@]}" install -q 'cmake>=3.20' ninja 'nanobind>=2.4' 'scikit-build-core>=0.10'
"${pip[@]}" install -q --no-build-isolation -e '.[cpu,demo,dev,models,sim]'
# Without its dependencies: they name fbgemm-gpu, which would overwrite fbgemm-gpu-cpu. The ones that
# it imports are in the extra `models`.
"${pip[@]}" install -q --no-deps torchrec==1.9.2
