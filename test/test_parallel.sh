#!/usr/bin/env bash
# The contract of bits, in full: losses and weights of a run are the same on 1, 2, 3, 4 and 8 ranks, with each ZeRO stage,
# with threads and with MPI, with buckets of any size. And that all meshes of 8 ranks learn alike. Prints a table of hashes,
# and one of errors; exit status 1 where one differs.
#
#   test/test_parallel.sh BINARY [--launch COMMAND]     COMMAND: what goes in front of the binary, e.g. an emulator of GPUs
#
# `make parallel-test` runs it; a part of it is in `make test` (test_ranks.cpp). Some minutes.
set -uo pipefail
binary=$1
launch=${3:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for line in $(seq 2000); do echo "line $((line * line % 97)) of the text"; done >"$work/text"

mpirun=
if command -v mpirun >/dev/null && mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
  mpirun="mpirun --allow-run-as-root --oversubscribe --bind-to none -np"
fi
threads="--threads 1"

# run NAME COMMAND...: trains three steps, and prints the hash of the losses and of the checkpoint.
hash_of() {
  local run=$1
  {
    grep -o '"loss":[^,]*,\|"val_loss":[^,]*,' "$run/log.jsonl"
    cat "$run/checkpoints/3/model.safetensors" "$run/checkpoints/3/optimizer.state"
  } | sha256sum | cut -c1-16
}

failed=0
compare() { # what it is, reference, command...
  local what=$1 reference=$2 hash
  shift 2
  rm -rf "$work/run"
  if "$@" --out "$work/run" >"$work/said" 2>&1; then hash=$(hash_of "$work/run"); else hash="failed: $(tail -n 1 "$work/said")"; fi
  [ "$hash" = "$reference" ] || failed=$((failed + 1))
  printf '  %-34s %s%s\n' "$what" "$hash" "$([ "$hash" = "$reference" ] || echo "  DIFFERS")"
}

recipes=(
  "--optimizer adamw --dropout 0.1"
  "--optimizer muon --dtype bf16"
  "--optimizer adamw --dtype bf16 --grad-accum 2 --dropout 0.1"
  "--architecture gpt2 --optimizer muon"
)
for recipe in "${recipes[@]}"; do
  # shellcheck disable=SC2086
  common=(train --data "$work/text" --layers 3 --channels 128 --heads 2 --context 32 --batch 1 --virtual-ranks 8 --steps 3
    --save-every 3 --eval-every 2 --sample-every 0 $threads $recipe)
  # shellcheck disable=SC2086
  $launch "$binary" "${common[@]}" --ranks 1 --out "$work/alone" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
  reference=$(hash_of "$work/alone")
  rm -rf "$work/alone"
  echo "$recipe: one rank $reference"
  for ranks in 2 3 4 8; do
    for zero in 0 1 2 3; do
      # shellcheck disable=SC2086
      compare "$ranks ranks, ZeRO $zero, threads" "$reference" $launch "$binary" "${common[@]}" --ranks $ranks --zero $zero
    done
    for bytes in 1 100000 100000000; do
      # shellcheck disable=SC2086
      compare "$ranks ranks, buckets of $bytes" "$reference" $launch "$binary" "${common[@]}" --ranks $ranks --bucket-bytes $bytes
    done
    [ -z "$mpirun" ] || for zero in 0 3; do
      # shellcheck disable=SC2086
      compare "$ranks ranks, ZeRO $zero, MPI" "$reference" $mpirun $ranks $launch "$binary" "${common[@]}" --zero $zero
    done
  done
done

# Meshes: stages have the bits of one rank, in fp32; where matrices are cut, the same cut has the same bits.
for recipe in "--architecture gpt2 --optimizer adamw --dropout 0.1" "--optimizer muon" "--experts 4 --expert-hidden 96"; do
  # shellcheck disable=SC2086
  common=(train --data "$work/text" --layers 4 --channels 128 --heads 4 --context 32 --batch 2 --grad-accum 4 --virtual-ranks 2
    --steps 3 --save-every 3 --eval-every 0 --sample-every 0 $threads $recipe)
  for cut in "" "--tensor 2" "--expert-ranks 2" "--context-ranks 2" \
    "--context-exchange ring --context-ranks 2"; do
    [[ "$cut" = *expert* && "$recipe" != *experts* ]] && continue
    each=${cut##* }
    each=${each:-1}
    # shellcheck disable=SC2086
    $launch "$binary" "${common[@]}" --ranks $each $cut --out "$work/alone" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
    reference=$(hash_of "$work/alone")
    rm -rf "$work/alone"
    echo "$recipe ${cut:-uncut}: $reference"
    for data in 1 2; do
      for how in "--stages 2 --pipeline gpipe" "--stages 2" "--stages 4 --pipeline zero-bubble" \
        "--stages 2 --pipeline interleaved --zero 0" "--stages 2 --zero 2"; do
        stages=$(echo "$how" | cut -d' ' -f2)
        ranks=$((data * stages * each))
        # shellcheck disable=SC2086
        compare "data $data, $how" "$reference" $launch "$binary" "${common[@]}" $cut --ranks $ranks $how
      done
      # shellcheck disable=SC2086
      [ -z "$mpirun" ] || compare "data $data, --stages 2, MPI" "$reference" $mpirun $((data * 2 * each)) $launch "$binary" \
        "${common[@]}" $cut --stages 2
    done
  done
done

# All meshes of 8 ranks: losses within rounding of those of one rank.
losses_of() { grep -o '"loss":[^,]*' "$1/log.jsonl" | cut -d: -f2; }
for recipe in "--architecture gpt2 --dropout 0.1" "--architecture llama" "--architecture qwen3 --optimizer muon"; do
  # shellcheck disable=SC2086
  common=(train --data "$work/text" --layers 8 --channels 64 --heads 8 --context 32 --batch 8 --grad-accum 2 --virtual-ranks 8
    --steps 3 --save-every 0 --eval-every 0 --sample-every 0 $threads $recipe)
  # shellcheck disable=SC2086
  $launch "$binary" "${common[@]}" --ranks 1 --out "$work/alone" >"$work/said" 2>&1 || { cat "$work/said"; exit 1; }
  losses_of "$work/alone" >"$work/losses"
  rm -rf "$work/alone"
  echo "$recipe, 8 ranks: losses $(paste -sd ' ' "$work/losses")"
  for stages in 1 2 4 8; do for tensor in 1 2 4 8; do for context in 1 2 4 8; do for exchange in gather ring; do
    [ $((stages * tensor * context)) -gt 8 ] && continue
    mesh="--stages $stages --tensor $tensor --context-ranks $context"
    # Rings where nothing is left to data-parallel ranks.
    if [ $exchange = ring ]; then
      [ "$context" = 1 ] || [ $((stages * tensor * context)) != 8 ] && continue
      mesh="$mesh --context-exchange ring"
    fi
    rm -rf "$work/run"
    # shellcheck disable=SC2086
    if $launch "$binary" "${common[@]}" --ranks 8 $mesh --out "$work/run" >"$work/said" 2>&1; then
      error=$(losses_of "$work/run" | paste "$work/losses" - |
        awk '{ d = ($1 - $2) / $1; d = d < 0 ? -d : d; if (d > most) most = d } END { printf "%.1e %d", most, NR == 3 && most < 1e-4 }')
    else
      error="failed: $(tail -n 1 "$work/said") 0"
    fi
    [ "${error##* }" = 1 ] || failed=$((failed + 1))
    printf '  %-75s %s%s\n' "$mesh" "${error% *}" "$([ "${error##* }" = 1 ] || echo "  DIFFERS")"
  done; done; done; done
done
[ $failed = 0 ] && echo "all are equal" || echo "$failed differ"
[ $failed = 0 ]
