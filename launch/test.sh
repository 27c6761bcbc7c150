#!/usr/bin/env bash
# Installs mach and its test tools into .venv and runs the tests.
#
#     launch/test.sh [arguments of pytest]
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
setup test
exec .venv/bin/python -m pytest -q "$@"
