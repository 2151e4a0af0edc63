#!/usr/bin/env bash
# Everything that needs a GPU, in one call: the tests marked "cuda", then the tables of docs/performance.md.
#
#   scripts/gpu/check.sh [--dry-run] [OUT]        by default OUT is outputs/gpu
#
# Each part has a time limit, seven and a half minutes in all, and writes its CSV and its log to OUT. A part that
# is done is not repeated when the call is, so a call that was cut off goes on where it was. OUT/tables.md has all
# tables at the end. The network is not needed: packages that are missing are installed from wheels/, if it is
# there. --dry-run takes the same way on the CPU, with the smallest network and one repetition.
set -uo pipefail
cd "$(dirname "$0")/../.."

dry=false
if [ "${1:-}" = --dry-run ]; then dry=true; shift; fi
out=${1:-outputs/gpu}
python=${PYTHON:-python}
mkdir -p "$out" || exit 1

if ! "$python" -c "import hydra, omegaconf, pandas, tqdm" 2>/dev/null && [ -d wheels ]; then
  "$python" -m pip install --quiet --no-index --find-links wheels hydra-core omegaconf pandas tqdm || exit 1
fi
if $dry; then
  device=(--device cpu --threads 1) repeats=1 networks=mlp large=mlp:100 optimizers=adam
  tests=(tests/test_devices.py -k "cpu and matrix_products")
else
  if ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "scripts/gpu/check.sh: torch finds no CUDA device; --dry-run takes the same way on the CPU" >&2
    exit 2
  fi
  device=(--device cuda) repeats=5 networks=mlp,lenet,bigmlp,vgg11 large=mlp,lenet,bigmlp,vgg11:100,resnet18,vit
  optimizers=adam,kfac,grouped_newton,grouped_newton_paper tests=(-m cuda)
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

failed=()
part() { # part NAME SECONDS COMMAND…: run a part that is not done yet, within its limit
  local name=$1 limit=$2
  shift 2
  if [ -e "$out/$name.done" ]; then echo "$name: done before"; return; fi
  echo "$name: $*"
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    touch "$out/$name.done"
  else
    failed+=("$name")
    echo "$name: failed, or longer than $limit s; the end of $out/$name.log:"
    tail -n 3 "$out/$name.log"
  fi
}

bench=scripts/bench
part products 30 "$python" scripts/gpu/products.py "${device[@]:0:2}" --out "$out/products.csv"
part summary 110 "$python" $bench/summary.py "${device[@]}" --only "$large" --repeats $repeats \
  --sides tangent,reference --out "$out/summary.csv"
part step 100 "$python" $bench/step.py "${device[@]}" --only "$networks" --repeats $repeats \
  --optimizers "$optimizers" --out "$out/step.csv"
if ! $dry; then
  for precision in tf32 bfloat16; do
    part "summary_$precision" 60 "$python" $bench/summary.py "${device[@]}" --only "$large" --repeats $repeats \
      --sides tangent --precision $precision --out "$out/summary_$precision.csv"
  done
fi
part tests 120 "$python" -m pytest -q -p no:cacheprovider --override-ini addopts= "${tests[@]}"
"$python" scripts/gpu/tables.py "$out" || failed+=(tables)

echo "written to $out/tables.md"
if [ ${#failed[@]} -gt 0 ]; then
  echo "not done: ${failed[*]}; the same call goes on with these" >&2
  exit 1
fi
