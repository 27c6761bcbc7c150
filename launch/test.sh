#!/usr/bin/env bash
# Installs mach and its test tools into .venv and runs the tests.
#
#     launch/test.sh [arguments of pytest]      -n 0: one file after the other
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
setup test
# Some files side by side: most tests wait for processes, which seldom keep a core busy.
exec .venv/bin/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile "$@"
