#!/usr/bin/env bash
# A lower room of llm/ never includes a higher one: base < device < graph < ops < model < text, train, infer, plan < cli.
set -euo pipefail
cd "$(dirname "$0")/.."

find llm -name '*.h' -o -name '*.cpp' -o -name '*.cu' | sort | xargs awk '
  BEGIN {
    split("base device graph ops model text,train,infer,plan cli", levels, " ")
    for (level in levels) {
      rooms = split(levels[level], names, ",")
      for (i = 1; i <= rooms; ++i) rank[names[i]] = level + 0
    }
  }
  FNR == 1 { split(FILENAME, path, "/"); room = path[2] }
  FNR == 1 && !(room in rank) { print FILENAME ": llm/" room " is no known room"; bad = 1 }
  /^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, quoted, "\"")
    if (split(quoted[2], included, "/") < 3 || included[1] != "llm") {
      print FILENAME ":" FNR ": \"" quoted[2] "\": write the path from the repository root, llm/ROOM/FILE"
      bad = 1
    } else if (rank[included[2]] == "" || rank[included[2]] > rank[room]) {
      print FILENAME ":" FNR ": " room " must not include " included[2] " (\"" quoted[2] "\")"
      bad = 1
    }
  }
  END { exit bad }' >&2
