#!/usr/bin/env bash
# The rooms of llm/ stand one above the other, and a file may include files only from its own room and from those below.
# Programs that run a model (infer) come above what reads it from disk (checkpoint), training above what evaluates and
# samples for it.
set -euo pipefail
cd "$(dirname "$0")/.."
order="base device graph ops model text checkpoint infer serve train plan cli"

for room in $order; do
  [ -d "llm/$room" ] || { echo "scripts/check_rooms.sh: its order names llm/$room, which does not exist" >&2; exit 1; }
done
find llm -name '*.h' -o -name '*.cpp' -o -name '*.cu' | sort | xargs awk -v order="$order" '
  BEGIN {
    rooms = split(order, names, " ")
    for (i = 1; i <= rooms; ++i) rank[names[i]] = i
  }
  FNR == 1 { split(FILENAME, path, "/"); room = path[2] }
  FNR == 1 && !(room in rank) { print FILENAME ": llm/" room " has no place in the order: " order; bad = 1 }
  /^[ \t]*#[ \t]*include[ \t]*"/ {
    split($0, quoted, "\"")
    if (split(quoted[2], included, "/") < 3 || included[1] != "llm") {
      print FILENAME ":" FNR ": \"" quoted[2] "\": write the path from the repository root, llm/ROOM/FILE"
      bad = 1
    } else if (rank[included[2]] == "" || rank[included[2]] > rank[room]) {
      print FILENAME ":" FNR ": " room " must not include " included[2] " (\"" quoted[2] "\"); the order: " order
      bad = 1
    }
  }
  END { exit bad }' >&2
