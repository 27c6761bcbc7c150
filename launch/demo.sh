#!/usr/bin/env bash
# Installs mach into .venv and trains a chain of four components on the embedded digits.
#
#     launch/demo.sh [overrides of the config, as for mach train]
set -euo pipefail
# shellcheck source=launch/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
setup base
exec .venv/bin/mach train "$@"
