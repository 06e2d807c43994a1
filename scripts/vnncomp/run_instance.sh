#!/usr/bin/env bash
# VNN-COMP: answers one instance:  run_instance.sh v1 CATEGORY ONNX_FILE VNNLIB_FILE RESULT_FILE TIMEOUT
# Both files may be compressed (.gz). Python stops by itself before TIMEOUT seconds; if it hangs, it is killed then.
set -uo pipefail
[ "${1:-}" = v1 ] || { echo "expected the version string v1, got '${1:-}'" >&2; exit 1; }
[ $# -ge 6 ] || { echo "expected v1 CATEGORY ONNX_FILE VNNLIB_FILE RESULT_FILE TIMEOUT" >&2; exit 1; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${STBP_VENV:-$here/../../.venv}/bin/python
timeout --signal=KILL "$6" "$python" "$here/run_instance.py" "$1" "$2" "$3" "$4" "$5" "$6" "$(nproc)"
code=$?
case $code in
  0 | 2 | 4) exit $code ;;
  124 | 137) echo timeout > "$5" ;;
  *) echo error > "$5"; exit $code ;;
esac
