#!/usr/bin/env bash
# All that needs a CUDA device, as one command: benchmarks/gpu/run.sh [tests] [bench] [pretrain]
#
# Asks for torch, numba, lightning, h5py, scikit-learn and pytest; not for anndata, nor for an installed scgpt_tl.
#   OUT            folder for logs, figures and the model        (out/gpu)
#   PYTHON         the interpreter                               (python3)
#   SCGPT_TL_DATA  real data; pretraining needs it, bench may    (unset)
#   PRETRAIN_ARGS  arguments handed to pretrain.py
# A step that fails does not stop the next one; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1

OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD/src:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" SCGPT_TL_BENCH_OUT=$OUT PYTHONUNBUFFERED=1
mkdir -p "$OUT"
failed=()

step() { # name, command...
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$OUT/$name.log" || failed+=("$name")
  echo "== $name: $((SECONDS - start)) s"
}

tests() {
  # Warnings are not errors here: the machine's versions are not the pinned ones.
  step tests "$PYTHON" -m pytest -m gpu -W default -p no:cacheprovider
}

bench() {
  local file
  for file in benchmarks/gpu/*.py; do
    case $(basename "$file") in _* | pretrain.py | "*.py") continue ;; esac
    step "$(basename "$file" .py)" "$PYTHON" "$file"
  done
}

pretrain() {
  if [ ! -f benchmarks/gpu/pretrain.py ]; then
    echo "== pretrain: benchmarks/gpu/pretrain.py is not there"
    failed+=(pretrain)
    return
  fi
  # shellcheck disable=SC2086 -- several arguments in one variable
  step pretrain "$PYTHON" benchmarks/gpu/pretrain.py --out "$OUT/pretrained" ${PRETRAIN_ARGS:-}
}

[ $# -gt 0 ] || set -- tests bench pretrain
for part in "$@"; do
  case $part in
    tests | bench | pretrain) "$part" ;;
    *) echo "no step named $part: tests, bench, pretrain" >&2; exit 2 ;;
  esac
done

if [ ${#failed[@]} -gt 0 ]; then
  echo "failed: ${failed[*]}"
  exit 1
fi
echo "all passed; results in $OUT"
