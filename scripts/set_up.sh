#!/usr/bin/env bash
# Makes a virtual environment with stbp-milp in it:  bash scripts/set_up.sh DIRECTORY [test]
# torch comes as the CPU build (200 MB instead of several GB); for a GPU, install torch==2.13.0 from PyPI over it.
set -euo pipefail
cd "$(dirname "$0")/.."
directory=${1:?usage: bash scripts/set_up.sh DIRECTORY [test]}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is older than 3.11; install Python 3.11 or newer" >&2; exit 2; }
[ -x "$directory/bin/python" ] || python3 -m venv "$directory" || {
  echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2; exit 2; }
"$directory/bin/python" -m pip install --quiet --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
"$directory/bin/python" -m pip install --quiet --editable ".${2:+[$2]}"
