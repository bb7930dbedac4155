#!/usr/bin/env bash
# `make serve-test`: the server against programs that people have, which are installed from PyPI into build/ (about 2 GB the
# first time), and a soak. TRAIN_GPT_BINARY names the program.
set -euo pipefail
cd "$(dirname "$0")/../.."
export TRAIN_GPT_BINARY=${TRAIN_GPT_BINARY:-./train_gpt} HF_HUB_OFFLINE=1

# Two environments: the packages of one need other versions than those of the other.
environment() {
  local folder=build/$1
  shift
  [ -e "$folder/complete" ] && return
  echo "serve-test: installs $* into $folder" >&2
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/pip" install --quiet --disable-pip-version-check "$@"
  touch "$folder/complete"
}
environment serve-test 'openai>=3' 'lm-eval[api]' playwright
environment serve-load 'evalscope[perf]'

echo "serve-test: the openai package, lm-eval" >&2
build/serve-test/bin/python test/serve/test_clients.py
echo "serve-test: the page in Chromium" >&2
build/serve-test/bin/python test/serve/test_page.py
echo "serve-test: evalscope's load" >&2
build/serve-load/bin/python test/serve/load.py
echo "serve-test: soak" >&2
python3 test/serve/soak.py "$@"
