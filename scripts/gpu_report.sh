#!/usr/bin/env bash
# Builds on this machine, tests and measures on its GPU, and writes the results as Markdown (gpu_measure.sh says which).
#
#   scripts/gpu_report.sh FILE.md
set -euo pipefail
cd "$(dirname "$0")/.."
report=${1:?scripts/gpu_report.sh FILE.md}

missing=$(scripts/setup.sh --check 2>&1) || {
  echo "gpu-report: $missing; where there are no packages to be had, carry a build here that \`make gpu-pack\` made elsewhere" >&2
  exit 1
}
make CUDA=1
about=$(./train_gpt --version | sed -n 's/^CUDA: //p')
case $about in
  *"device 0"*) ;;
  *) echo "gpu-report: no GPU to report on: $about" >&2 && exit 1 ;;
esac
make -j"$(nproc)" CUDA=1 build/release/run_gpu_tests
status=0
scripts/gpu_measure.sh build/release build/gpu-report >/dev/null || status=$?
cp build/gpu-report/report.md "$report"
echo "gpu-report: $report; logs in build/gpu-report" >&2
exit $status
