#!/usr/bin/env bash
# VNN-COMP: before the clock of an instance starts:  prepare_instance.sh v1 CATEGORY ONNX_FILE VNNLIB_FILE
# Nothing is kept; what python and torch read from disk is warm afterwards.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "expected the version string v1, got '${1:-}'" >&2; exit 1; }
[ $# -ge 4 ] || { echo "expected v1 CATEGORY ONNX_FILE VNNLIB_FILE" >&2; exit 1; }
for file in "$3" "$4"; do
  [ -r "$file" ] || { echo "there is no file '$file' to read" >&2; exit 1; }
done
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
exec "${STBP_VENV:-$root/.venv}/bin/python" -c "import stbp_milp.interop.competition"
