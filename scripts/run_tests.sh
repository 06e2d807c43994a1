#!/usr/bin/env bash
# Sets up a virtual environment and runs every check:  bash scripts/run_tests.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:?usage: bash scripts/run_tests.sh DIRECTORY}
bash scripts/set_up.sh "$directory" test
export OMP_NUM_THREADS=1 HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE:-dev}
export PATH="$(cd "$directory" && pwd)/bin:$PATH"
ruff check .
ruff format --check .
mypy
lint-imports
bash scripts/check_wheel.sh "$(command -v python)"
python -m pytest -q -n 2
