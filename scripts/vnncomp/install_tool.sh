#!/usr/bin/env bash
# VNN-COMP: installs the tool, once:  install_tool.sh v1
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected the version string v1, got '${1:-}'" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
bash scripts/set_up.sh .venv
