#!/usr/bin/env bash
# Checks what `make portable` built: that no copy holds an instruction of a better CPU than its own, that the right copy
# is chosen, that each copy ends with the right status, and how far apart the copies' losses are after 50 steps. For
# CPUs without AVX-512 or AVX the binary is also run under qemu-x86_64 (Debian's qemu-user), where that is found.
#
#   portable/check.sh [BINARY]     ./train_gpt by default, with the objects in build/portable
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$(realpath "${1:-train_gpt}")
levels="x86-64 x86-64-v3 x86-64-v4"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() {
  echo "portable/check.sh: $*" >&2
  exit 1
}

# `holds LEVEL PATTERN`: whether the copy's objects hold such an instruction. Wide vector registers have names of their
# own; in the plain copy any AVX encoding counts, whose name begins with v.
holds() {
  find "build/portable/$1" -name '*.o' ! -name copy.o ! -path '*/simt/*' ! -path '*/test/*' -exec objdump -d --no-show-raw-insn {} + |
    grep -P "$2" >"$work/found"
}
! holds x86-64 '%[yz]mm|\t *v(?!err|erw)\w+ ' || fail "the plain copy has an AVX instruction: $(head -1 "$work/found")"
! holds x86-64-v3 '%zmm|%k[0-7]' || fail "the AVX2 copy has an AVX-512 instruction: $(head -1 "$work/found")"
holds x86-64-v4 '%zmm' || fail "the AVX-512 copy has no AVX-512 instruction"
echo "instructions: no copy holds one of a better CPU"

# `run LEVEL ARGUMENT...` runs that copy on this CPU.
run() {
  local level=$1
  shift
  TRAIN_GPT_CPU=$level "$binary" "$@"
}
status_of() {
  local status=0
  "$@" >"$work/out" 2>"$work/err" || status=$?
  echo $status
}

run x86-64-v2 --version >"$work/out" 2>&1 && fail "TRAIN_GPT_CPU=x86-64-v2 names no copy, and was taken"
grep -q 'this binary has' "$work/out" || fail "TRAIN_GPT_CPU=x86-64-v2: $(cat "$work/out")"

for i in $(seq 2000); do echo "line $((i * i % 97)) of the text, $((i * 7 % 31)) of $((i % 13))"; done >"$work/text.txt"
here=""
for level in $levels; do
  if [ "$(status_of run "$level" --version)" = 2 ]; then
    echo "$level: this CPU cannot run it"
    continue
  fi
  here="$here $level"
  grep -q "^CPU: $level " "$work/out" || fail "TRAIN_GPT_CPU=$level runs another copy: $(cat "$work/out")"
  # An exception that main() catches by its type, and one that it does not expect.
  [ "$(status_of run "$level" train --data "$work/text.txt" --schedule no)" = 2 ] || fail "$level: a wrong command line: $(cat "$work/err")"
  [ "$(status_of run "$level" train --data "$work/nothing.txt")" = 1 ] || fail "$level: a missing file: $(cat "$work/err")"
  for threads in 1 3; do
    for architecture in gpt2 modern; do
      run "$level" train nano --architecture $architecture --data "$work/text.txt" --out "$work/$level-$architecture-$threads" --batch 4 \
        --steps 50 --lr 0.001 --eval-every 0 --save-every 0 --sample-every 0 --threads $threads >"$work/out" 2>"$work/err" || fail "$level: $(cat "$work/err")"
      sed -n 's/.*"loss":\([0-9.e+-]*\).*/\1/p' "$work/$level-$architecture-$threads/log.jsonl" >"$work/$level-$architecture-$threads.losses"
      [ "$(wc -l <"$work/$level-$architecture-$threads.losses")" = 50 ] || fail "$level: not 50 losses"
    done
  done
  for architecture in gpt2 modern; do
    cmp "$work/$level-$architecture-1.losses" "$work/$level-$architecture-3.losses" || fail "$level: three threads have other losses than one"
  done
done
best=${here##* }
"$binary" --version | grep -q "^CPU: $best " || fail "of$here, $best is not what is chosen: $("$binary" --version)"
echo "copies that run here:$here; chosen: $best"

# Sums of other widths, with and without fma, differ in their last bits. Training makes such a difference grow, at the
# default rate of so short a run to 1 %; at this rate the worst seen is 5e-7.
for architecture in gpt2 modern; do
  for level in $here; do
    [ "$level" != "$best" ] || continue
    paste "$work/$level-$architecture-1.losses" "$work/$best-$architecture-1.losses" | awk -v name="$architecture, $level against $best" '
      { d = ($1 - $2) / $2; if (d < 0) d = -d; if (d > worst) worst = d; equal += $1 == $2 }
      END { printf "50 losses of %s: %d equal, at most %.1e apart\n", name, equal, worst; exit !(worst <= 5e-6) }' ||
      fail "that is more than 5e-6"
  done
done

if command -v qemu-x86_64 >/dev/null; then
  emulated() { qemu-x86_64 -cpu "$@" 2>/dev/null; }
  for pair in Nehalem=x86-64 Haswell=x86-64-v3; do
    cpu=${pair%%=*} level=${pair#*=}
    emulated "$cpu" "$binary" --version | grep -q "^CPU: $level " || fail "on a $cpu: not the copy $level"
    emulated "$cpu" "$binary" train nano --data "$work/text.txt" --out "$work/$cpu" --batch 1 --context 16 --steps 3 --eval-every 0 --save-every 0 \
      --sample-every 0 --threads 2 >"$work/out" || fail "on a $cpu: training ends with status $?"
    run "$level" train nano --data "$work/text.txt" --out "$work/$cpu-here" --batch 1 --context 16 --steps 3 --eval-every 0 --save-every 0 \
      --sample-every 0 --threads 2 >"$work/out" 2>&1 || fail "$level: training ends with status $?"
    for run in "$cpu" "$cpu-here"; do sed -n 's/.*"loss":\([0-9.e+-]*\).*/\1/p' "$work/$run/log.jsonl" >"$work/$run.losses"; done
    cmp "$work/$cpu.losses" "$work/$cpu-here.losses" || fail "on a $cpu the copy $level has other losses than here"
    [ "$(status_of env TRAIN_GPT_CPU=x86-64-v4 qemu-x86_64 -cpu "$cpu" "$binary" --version)" = 2 ] || fail "a $cpu runs AVX-512"
    echo "emulated $cpu: runs $level, with the losses it has here"
  done
else
  echo "no qemu-x86_64 here: plainer CPUs are not emulated (Debian: qemu-user)"
fi
