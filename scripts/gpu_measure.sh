#!/usr/bin/env bash
# Measures train_gpt on a GPU in one run of a few minutes: is it right, how fast is it beside PyTorch, and where does
# the time go? OUT gets report.md (also printed), a log of each step, and the files that the steps made.
#
#   scripts/gpu_measure.sh BIN OUT          BIN: a folder with train_gpt and run_gpu_tests (or gzipped ones)
# Settings by environment:
#   BUDGET=480     seconds in all; each step has a limit of its own; the report names steps without time left
#   STEP_LIMIT=S   no step takes longer than S seconds
#   SKIP='a b'     steps to leave out; ONLY='a b': the only steps to run (their names are in the report)
#   DATA=DIR       token shards of GPT-2's vocabulary; without them the text that TEXT names is taken, by bytes
#   TEXT=FILE      a text; without it a made-up one
#   TORCH=python3  a Python with PyTorch, for the comparison
#   PREFIX=COMMAND what stands before each command, e.g. a simulator
# A step that fails or hangs stops nothing. The exit status is 1 when a step failed.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bin=${1:?scripts/gpu_measure.sh BIN OUT} out=${2:?scripts/gpu_measure.sh BIN OUT}
BUDGET=${BUDGET:-480} SKIP=" ${SKIP:-} " ONLY=" ${ONLY:-} " TORCH=${TORCH:-python3} PREFIX=${PREFIX:-}
mkdir -p "$out/logs" "$out/made"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
began=$SECONDS
mkdir -p "$work/bin" "$work/run"
for name in train_gpt run_gpu_tests; do
  if [ -e "$bin/$name.gz" ]; then gunzip -c "$bin/$name.gz" >"$work/bin/$name"; else cp "$bin/$name" "$work/bin/"; fi || exit 2
  chmod +x "$work/bin/$name"
done
export PATH=$work/bin:$PATH:/usr/local/cuda/bin XDG_CACHE_HOME=$work/cache PYTHONUNBUFFERED=1
for tool in /opt/nvidia/nsight-compute/*/; do [ ! -x "$tool/ncu" ] || PATH=$PATH:$tool; done
: >"$work/table"

if [ -z "${TEXT:-}" ]; then
  TEXT=$work/text.txt
  # A made-up text, of words that follow one another by rule, so that a model can learn it.
  awk 'BEGIN { srand(1); split("the old king of a far land went to see his own people and gave them bread for each day", w, " ")
    for (i = 0; i < 60000; ++i) printf "%s%s", w[1 + int(19 * rand() * rand())], i % 11 ? " " : ".\n" }' >"$TEXT"
fi
DATA=${DATA:-$TEXT}
export TEXT DATA PREFIX work out here

left() { echo $((BUDGET - (SECONDS - began))); }
record() { printf '| %s | %s | %s s | %s |\n' "$1" "$2" "$3" "${4:-}" >>"$work/table"; }
wanted() {
  case $SKIP in *" $1 "*) return 1 ;; esac
  [ "$ONLY" = "  " ] || case $ONLY in *" $1 "*) ;; *) return 1 ;; esac
}
# `step NAME LIMIT COMMAND...` runs the command within its limit and the budget; its output goes to logs/NAME.log.
step() {
  local name=$1 limit=$2 start=$SECONDS status room log=$out/logs/$1.log
  shift 2
  wanted "$name" || { record "$name" "left out" 0 && return 0; }
  room=$(left)
  [ "$room" -ge 8 ] || { record "$name" "no time was left" 0 && return 1; }
  [ "$limit" -le "$room" ] || limit=$room
  [ "$limit" -le "${STEP_LIMIT:-$limit}" ] || limit=$STEP_LIMIT
  echo "gpu: $name (at most $limit s)" >&2
  timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null
  status=$?
  case $status in
    0) record "$name" ok $((SECONDS - start)) ;;
    124 | 137) record "$name" "**timed out**" $((SECONDS - start)) "$(tail -n 1 "$log" | cut -c1-110)" ;;
    *) record "$name" "**failed, $status**" $((SECONDS - start)) "$(grep -aE 'rror|FAIL|fail' "$log" | tail -n 1 | cut -c1-110)" ;;
  esac
  return $status
}
finish() {
  trap - EXIT INT TERM
  wait
  local failed=0
  grep -qE 'failed|timed out' "$work/table" && failed=1
  {
    echo "# GPU report"
    echo
    cat "$work/facts" 2>/dev/null
    [ ! -s "$work/figures" ] || { echo && cat "$work/figures"; }
    echo
    echo "| step | | took | |"
    echo "| --- | --- | ---: | --- |"
    cat "$work/table"
  } >"$out/report.md"
  cat "$out/report.md"
  rm -rf "$work"
  exit $failed
}
trap finish EXIT
trap 'exit 130' INT TERM

{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader 2>&1 | head -n 1
  $PREFIX train_gpt --version 2>&1
} >"$work/facts"

# Is it right? These steps run all at once, since none of them is timed. Learning rates are low: at high ones training
# amplifies rounding, and the losses of two devices that round differently drift apart.
quiet="--eval-every 0 --save-every 0 --sample-every 0 --optimizer adamw --grad-accum 1 --lr 0.0005 --log-format jsonl"
train() { # NAME DEVICE DTYPE ARGUMENTS...
  local name=$1 device=$2 dtype=$3
  shift 3
  $PREFIX train_gpt train "$@" $quiet --device "$device" --dtype "$dtype" --out "$work/run/$name" >"$out/made/$name.jsonl"
}
pair() { # NAME DTYPE ARGUMENTS...: the same run on both devices
  local name=$1 dtype=$2 status=0
  shift 2
  train "$name-cpu" cpu "$dtype" "$@" &
  train "$name-cuda" cuda "$dtype" "$@" || status=$?
  wait $! || status=1
  return $status
}
generated() { # the same greedy text on both devices
  local device
  $PREFIX train_gpt train tiny --data "$TEXT" --steps 60 --batch 16 --eval-every 0 --sample-every 0 --device cuda --out "$work/run/generated" >/dev/null || return
  for device in cpu cuda; do
    $PREFIX train_gpt generate "$work/run/generated" --device $device --dtype fp32 --prompt "the " --temperature 0 --max-tokens 120 --no-stop >"$out/made/generated-$device.txt" || return
  done
  cmp "$out/made/generated-cpu.txt" "$out/made/generated-cuda.txt"
}
sanitize() { # TOOL
  command -v compute-sanitizer >/dev/null || { echo "error: no compute-sanitizer here" && return 1; }
  compute-sanitizer --tool "$1" --error-exitcode 9 "$work/bin/train_gpt" train --data "$TEXT" --architecture gpt2 --layers 1 --channels 128 --heads 2 --context 128 --batch 2 --steps 2 $quiet --no-gemm-tuning --device cuda --dtype bf16 --out "$work/run/$1" | grep -v '^{'
  return "${PIPESTATUS[0]}"
}
export -f train pair generated sanitize
export quiet
small="--layers 2 --channels 128 --heads 2 --context 128 --batch 4 --steps 6 --threads 4"
step tests 240 bash -c '$PREFIX run_gpu_tests -tc="cuda*"' &
step losses 120 bash -c "pair gpt2-fp32 fp32 --data \$TEXT --architecture gpt2 $small && pair gpt2-bf16 bf16 --data \$TEXT --architecture gpt2 $small &&
  pair modern-fp32 fp32 --data \$TEXT $small && pair modern-bf16 bf16 --data \$TEXT $small && pair modern-fp8 fp8 --data \$TEXT $small &&
  pair grouped128-bf16 bf16 --data \$TEXT --layers 2 --channels 256 --heads 4 --kv-heads 2 --head-size 128 --context 256 --batch 2 --steps 4 --threads 4" &
step losses_124M 120 bash -c 'pair gpt2_124M-bf16 bf16 gpt2-124M --data $DATA --batch 1 --steps 4 --threads 8' &
step generated 60 bash -c generated &
step memcheck 120 bash -c 'sanitize memcheck' &
step racecheck 120 bash -c 'sanitize racecheck' &
wait
step losses_compared 10 python3 "$here/gpu_figures.py" losses "$out/made"

# How fast is it? These steps run alone on the machine.
rm -rf "$work/cache"  # its algorithms were timed while other steps ran
qwen="qwen3-0.6B --layers 24 --heads 14 --kv-heads 2 --channels 896 --head-size 64 --hidden 4864 --qk-norm off --context 1024"
bench="--device cuda --optimizer adamw --batch 16"
step bench 60 bash -c "\$PREFIX train_gpt bench gpt2-124M $bench --dtype bf16 --steps 20 --nodes --save \$out/made/bench.json"
step train 60 bash -c "\$PREFIX train_gpt train gpt2-124M --data \$DATA --batch 16 --steps 150 \$quiet --device cuda --dtype bf16 --out \$work/run/train >\$out/made/train.jsonl"
step train_again 60 bash -c "\$PREFIX train_gpt train gpt2-124M --data \$DATA --batch 16 --steps 150 \$quiet --device cuda --dtype bf16 --out \$work/run/again >\$out/made/train_again.jsonl &&
  cmp <(grep -o '\"loss\":[^,]*' \$out/made/train.jsonl) <(grep -o '\"loss\":[^,]*' \$out/made/train_again.jsonl)"
step torch 90 "$TORCH" "$here/torch_step.py" --compile --steps 100 --save "$out/made/torch.json"
step bench_qwen 60 bash -c "\$PREFIX train_gpt bench $qwen $bench --dtype bf16 --steps 10 --save \$out/made/bench_qwen.json"
step torch_qwen 90 "$TORCH" "$here/torch_step.py" --model qwen --compile --steps 40 --save "$out/made/torch_qwen.json"
step torch_kernels 60 "$TORCH" "$here/torch_step.py" --kernels --save "$out/made/torch_kernels.json"
step bench_fp8 60 bash -c "\$PREFIX train_gpt bench gpt2-124M $bench --dtype fp8 --steps 10 --save \$out/made/bench_fp8.json"
step bench_muon 60 bash -c "\$PREFIX train_gpt bench gpt2-124M --device cuda --optimizer muon --batch 16 --dtype bf16 --steps 10 --save \$out/made/bench_muon.json"
step train_accumulated 60 bash -c "\$PREFIX train_gpt train gpt2-124M --data \$DATA --batch 32 --steps 6 ${quiet/--grad-accum 1/--grad-accum 16} --device cuda --dtype bf16 --out \$work/run/accumulated >\$out/made/train_accumulated.jsonl"

# Where does the time go?
counters="--section SpeedOfLight --section Occupancy --section LaunchStats --section WarpStateStats"
step profile 90 bash -c "ncu --clock-control none -f -o \$out/made/profile $counters -k 'regex:llm|flash|classifier|norm|adamw|bias|sum_|embedding|merge|sort|mean_loss|elementwise' -c 48 \
  \$work/bin/train_gpt train gpt2-124M --layers 1 --data \$DATA --batch 16 --steps 1 \$quiet --no-gemm-tuning --device cuda --dtype bf16 --out \$work/run/profile &&
  ncu --import \$out/made/profile.ncu-rep --page raw --csv >\$out/made/profile.csv && python3 \$here/gpu_figures.py profile \$out/made/profile.csv"

python3 "$here/gpu_figures.py" report "$out" >"$work/figures" 2>&1
