#!/usr/bin/env bash
# Finds the CUDA Toolkit for the Makefile and prints what the Makefile needs as words: nvcc=FILE version=13.0
# lib=DIR..., and arch=90a for each kind of GPU that this machine has; or nothing, where there is no CUDA. A toolkit
# that is there but cannot be used is an error, which is printed as a line that begins with "CUDA:".
#
#   scripts/find_cuda.sh auto|1 static|shared    (CUDA=, CUDART= of the Makefile)
set -euo pipefail
wanted=${1:-auto}
runtime=${2:-static}

die() {
  echo "CUDA: $*; \`make CUDA=0\` builds without the GPU"
  exit 1
}
case $wanted in auto | 1) ;; *) die "CUDA=$wanted is none of auto, 0, 1" ;; esac
case $runtime in static | shared) ;; *) die "CUDART=$runtime is none of static, shared" ;; esac

# $CUDA_HOME is more explicit than PATH, so it decides. One that names no directory is left over from elsewhere.
nvcc=
if [ -d "${CUDA_HOME:-}" ]; then
  nvcc=$CUDA_HOME/bin/nvcc
  [ -x "$nvcc" ] || die "CUDA_HOME=$CUDA_HOME has no bin/nvcc (the compiler of the CUDA Toolkit is missing)"
elif ! nvcc=$(command -v nvcc); then
  nvcc=/usr/local/cuda/bin/nvcc
  if [ ! -x $nvcc ]; then
    [ ! -d /usr/local/cuda ] || die "/usr/local/cuda has no bin/nvcc (the compiler of the CUDA Toolkit is missing)"
    [ "$wanted" != 1 ] || die "CUDA=1, but there is no nvcc on PATH, in \$CUDA_HOME/bin or in /usr/local/cuda/bin"
    exit 0
  fi
fi

about=$("$nvcc" --version 2>&1) || die "$nvcc does not run"
version=$(sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' <<<"$about")
[ -n "$version" ] || die "$nvcc --version names no release"
[ "${version%%.*}" -ge 12 ] || die "$nvcc is of CUDA $version, C++20 needs 12.0 or later"

# nvcc itself knows best where its toolkit is (nvcc may be a link or a wrapper).
root=$("$nvcc" --dryrun -x cu -c /dev/null -o /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p') || true
root=$(cd "${root:-$(dirname "$(readlink -f "$nvcc")")/..}" && pwd -P) || die "$nvcc does not say where its toolkit is"

# `holder FILE DIRECTORY...` prints the first of the directories that has the file.
holder() {
  local file=$1 directory
  shift
  for directory in "$@"; do
    if [ -e "$directory/$file" ]; then echo "$directory" && return 0; fi
  done
  return 1
}
IFS=: read -ra more_headers <<<"${CPATH:-}"
IFS=: read -ra more_libraries <<<"${LIBRARY_PATH:-}"
for header in cuda_runtime.h cublasLt.h; do
  holder $header "$root/include" "$root"/targets/*/include "${more_headers[@]}" /usr/include >/dev/null ||
    die "the CUDA $version of $nvcc has no $header"
done
libraries=""
if [ "$runtime" = static ]; then cudart=libcudart_static.a; else cudart=libcudart.so; fi
for library in $cudart libcublasLt.so; do
  directory=$(holder $library "$root/lib64" "$root/lib" "$root"/targets/*/lib "${more_libraries[@]}" \
    "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64) || die "the CUDA $version of $nvcc has no $library"
  case " $libraries " in *" lib=$directory "*) ;; *) libraries+=" lib=$directory" ;; esac
done

# The GPUs' compute capabilities, without repeats: "8.6" -> 86, "9.0" -> 90a, which has Hopper's own instructions. A
# driver that does not answer counts as no GPU.
archs=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | grep -xE '[0-9]+' | sort -nu |
  sed 's/^90$/90a/; s/^/ arch=/' | tr -d '\n') || true

echo "nvcc=$nvcc version=$version$libraries$archs"
