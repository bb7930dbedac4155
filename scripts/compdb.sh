#!/usr/bin/env bash
# compile_commands.json for editors and clangd, from what make would run: scripts/compdb.sh > compile_commands.json
set -euo pipefail
cd "$(dirname "$0")/.."
make --always-make --dry-run CUDA=0 without-warnings | awk -v here="$PWD" '
  match($0, / -c [^ ]+ -o /) {
    file = substr($0, RSTART + 4, RLENGTH - 8)
    sub(/ 2>.*/, "")  # where the warnings go
    gsub(/\\/, "\\\\"); gsub(/"/, "\\\"")
    printf "%s{\"directory\": \"%s\", \"file\": \"%s\", \"command\": \"%s\"}", n++ ? ",\n " : "[", here, file, $0
  }
  END { print "]" }'
