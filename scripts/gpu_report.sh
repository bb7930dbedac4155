#!/usr/bin/env bash
# Everything that wants to be known of a GPU, into one Markdown file: the kernels held against the references on it, and the time
# of every op and of a gpt2-124M step against what its memory and its matrix products were measured to reach.
#
#   scripts/gpu_report.sh FILE.md
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:?scripts/gpu_report.sh FILE.md}

make CUDA=1
about=$(./train_gpt --version | sed -n 's/^CUDA: //p')
case $about in
  *"device 0"*) ;;
  *) echo "gpu-report: no GPU to report on: $about" >&2 && exit 1 ;;
esac

new=$(mktemp "$report.XXXXXX")
log=$(mktemp)
trap 'rm -f "$new" "$log"' EXIT
tests=passed
make CUDA=1 gpu-test 2>&1 | tee "$log" >&2 || tests=FAILED
summary=$(sed 's/\x1b\[[0-9;]*m//g' "$log" | grep '^\[doctest\] test cases' || echo "no summary")

table() {
  echo
  echo "### $1"
  echo
  shift
  "$@"
}
{
  echo "# GPU report"
  echo
  echo "$about; commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)."
  echo
  echo "Tests on the GPU: $tests. $summary"
  [ $tests = passed ] || sed 's/^/    /' "$log" | grep -E 'ERROR|FATAL' | head -20
  for dtype in bf16 fp32; do
    table "gpt2-124M, $dtype" ./train_gpt bench gpt2-124M --device cuda --dtype $dtype --batch 4 --steps 20 --format markdown
  done
  table "gpt2-124M, bf16, every shape" \
    ./train_gpt bench gpt2-124M --device cuda --dtype bf16 --batch 4 --steps 20 --nodes --format markdown
} >"$new"
mv "$new" "$report"
trap - EXIT
rm -f "$log"
echo "gpu-report: $report" >&2
[ $tests = passed ]
