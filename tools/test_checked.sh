#!/usr/bin/env bash
# Runs tests against an extension that checks its contracts (TE_CHECKS) and has few positions, so
# that planners renumber all the time. Usage: tools/test_checked.sh PYTHON [argument of pytest]...
#
# The extension has a build directory and a virtual environment of its own under build/checked; that
# environment sees the packages of PYTHON's, but not the normal build of this project.
set -euo pipefail
python=$(realpath -s "$1")
shift
cd "$(dirname "$0")/.."
venv=build/checked/venv

if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv --without-pip "$venv"
fi
# As plain folders: the .pth files in them, which would find the normal build, are not read.
"$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' \
  > "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages.pth"

PATH="$(dirname "$python"):$PATH" "$python" -m pip --disable-pip-version-check \
  --python "$venv/bin/python" install -q --no-build-isolation --no-deps \
  --config-settings=build-dir="build/checked/{wheel_tag}" \
  --config-settings=cmake.define.TE_CHECKS=ON -e .
"$venv/bin/python" -c '
from tiered_embed import _native
assert _native.HAS_CHECKS, f"{_native.__file__} was built without TE_CHECKS"'
# What a failed check prints must get past pytest, which would keep it: the process ends there.
exec "$venv/bin/python" -m pytest --capture=sys "$@"
