#!/usr/bin/env bash
# Builds the wheel and uses it outside of the checkout, with the dependencies of an environment:
#   bash scripts/check_wheel.sh .venv/bin/python
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath -s "${1:?usage: bash scripts/check_wheel.sh PYTHON}")
there=$(mktemp -d)
trap 'rm -rf "$there" build/lib build/bdist.*' EXIT
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$there" .
"$python" -m pip install --quiet --no-deps --target "$there/site" "$there"/stbp_milp-*.whl
cd "$there"
export PYTHONPATH="$there/site"
"$python" -c "import stbp_milp; assert stbp_milp.__file__.startswith('$there'), stbp_milp.__file__"
"$python" -m stbp_milp --version
shipped="$there/site/stbp_milp/st_bench/shipped"
said=$("$python" -m stbp_milp verify --quiet --model "$shipped/onnx/activity-S-standard.onnx" \
  --input "$shipped/clips/activity-S.npz:clips[11]" --set frames:1,3,4 --eps 0.00937 --label 3 --timeout 60)
echo "$said"
[[ $said == verified* ]]
