#!/usr/bin/env bash
# Writes the manual page, or bash's completion, from what the program's own --help says.
#
#   scripts/make_man.sh man BINARY > train_gpt.1
#   scripts/make_man.sh completion BINARY > train_gpt
set -euo pipefail
binary=${2:?scripts/make_man.sh man|completion BINARY}
commands=$("$binary" --help | sed -n '/^Subcommands:/,/^$/s/^  \([a-z]*\) .*/\1/p')

man() {
  # Escapes text: backslashes and leading dots mean something to troff.
  text() { sed 's/\\/\\e/g; s/^\([.'"'"']\)/\\\&\1/; s/-/\\-/g'; }
  printf '.TH TRAIN_GPT 1 "" "%s" "User Commands"\n.SH NAME\ntrain_gpt \\- from text to a trained GPT\n' "$("$binary" --version | head -n 1)"
  printf '.SH SYNOPSIS\n.B train_gpt\n.I COMMAND\n[OPTIONS]\n.SH DESCRIPTION\n.nf\n'
  "$binary" --help | text
  for command in $commands; do
    printf '.fi\n.SH %s\n.nf\n' "$(tr '[:lower:]' '[:upper:]' <<<"$command")"
    "$binary" "$command" --help | text
  done
  printf '.fi\n'
}

completion() {
  echo "_train_gpt() {"
  echo "  local word=\${COMP_WORDS[COMP_CWORD]} words=\"--help --version $(tr '\n' ' ' <<<"$commands")\""
  echo "  case \${COMP_WORDS[1]:-} in"
  for command in $commands; do
    echo "    $command) words=\"$("$binary" "$command" --help | grep -oE '^  (-h,)?!?--[a-z0-9-]+' | grep -oE -- '--.*' | tr '\n' ' ')\" ;;"
  done
  echo "  esac"
  echo "  [ \"\$COMP_CWORD\" -gt 1 ] || words=\"--help --version $(tr '\n' ' ' <<<"$commands")\""
  # shellcheck disable=SC2016
  echo '  case $word in -*) ;; *) [ "$COMP_CWORD" -gt 1 ] && words= ;; esac'
  # shellcheck disable=SC2016
  echo '  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")'
  echo "}"
  echo "complete -o default -F _train_gpt train_gpt"
}

case $1 in man | completion) "$1" ;; *) echo "scripts/make_man.sh man|completion BINARY" >&2 && exit 2 ;; esac
