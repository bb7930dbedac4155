#!/usr/bin/env bash
# Tests that scripts/gpu_measure.sh ends with a report whatever its programs do: fail, hang, die, or find no GPU.
#
#   test/test_gpu_measure.sh [TRAIN_GPT]      also with the real program, which finds no GPU where there is none
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failures=0
expect() { # WHAT FILE PATTERN
  grep -qE "$3" "$2" || { echo "FAILED: $1: no line like '$3' in:" && sed 's/^/    /' "$2" && failures=$((failures + 1)); }
}
program() { # NAME BODY
  printf '#!/bin/sh\n%s\n' "$2" >"$folder/bin/$1" && chmod +x "$folder/bin/$1"
}
measure() { # NAME SETTINGS...: the exit status in `status`
  status=0
  env "${@:2}" TORCH=false STEP_LIMIT=1 scripts/gpu_measure.sh "$folder/bin" "$folder/$1" >"$folder/$1.txt" 2>"$folder/$1.err" || status=$?
}
mkdir "$folder/bin"

# The tests hang and the program fails: the report names both, and the steps after them run.
program run_gpu_tests 'sleep 1000'
program train_gpt 'echo "error: no GPU for this test" >&2; exit 1'
measure broken
[ $status = 1 ] || { echo "FAILED: broken: exit status $status, not 1" && failures=$((failures + 1)); }
expect broken "$folder/broken/report.md" '^\| tests \| \*\*timed out'
expect broken "$folder/broken/report.md" '^\| losses \| \*\*failed.* no GPU for this test'
expect broken "$folder/broken/report.md" '^\| bench \| \*\*failed'
expect broken "$folder/broken/report.md" '^\| torch \| \*\*failed'
expect broken "$folder/broken/report.md" '^\| profile \| \*\*failed'

# A step that is killed from outside has failed; a step that was not asked for is left out.
program run_gpu_tests 'kill -9 $$'
program train_gpt 'exit 0'
measure killed ONLY='tests bench'
expect killed "$folder/killed/report.md" '^\| tests \| \*\*(failed|timed out)'
expect killed "$folder/killed/report.md" '^\| bench \| ok'
expect killed "$folder/killed/report.md" '^\| train \| left out'

# When no time is left, the report names the steps that were not run.
measure late BUDGET=1 ONLY='bench train'
expect late "$folder/late/report.md" '^\| bench \| no time was left'

if [ -n "${1:-}" ] && ! nvidia-smi >/dev/null 2>&1; then
  cp "$1" "$folder/bin/train_gpt"
  measure real ONLY='losses bench train'
  [ $status = 1 ] || { echo "FAILED: real: exit status $status, not 1" && failures=$((failures + 1)); }
  expect real "$folder/real/report.md" '^\| bench \| \*\*failed, [12]'
fi
[ $failures = 0 ] && echo "test_gpu_measure: passed"
[ $failures = 0 ]
