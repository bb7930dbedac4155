#!/usr/bin/env bash
# Installs what the build needs on Debian 12+ and Ubuntu 22.04+, and only what is missing. When nothing is missing, it
# needs neither the network nor root.
#
#   scripts/setup.sh [demo] [lint] [fuzz] [serve] [mpi] [onednn]
#                                     the packages of the build and the tests; also those of the demo's text,
#                                     of `make lint` (the formatter), of `make fuzz` (clang), of `make
#                                     serve-test` (Chromium, venv), MPI, and oneDNN
#   scripts/setup.sh --check          installs nothing: one line that names what is missing, exit status 1
#   scripts/setup.sh --compiler       prints the C++ compiler to use ($CXX, or the first g++ of version 12 or later)
set -euo pipefail

die() {
  echo "setup: $*" >&2
  exit 1
}

# Which header comes with which package.
headers="
CLI/CLI.hpp        libcli11-dev
doctest/doctest.h  doctest-dev
nlohmann/json.hpp  nlohmann-json3-dev
oniguruma.h        libonig-dev
pcre2.h            libpcre2-dev
utf8proc.h         libutf8proc-dev
zlib.h             zlib1g-dev
zstd.h             libzstd-dev
"
# These are installed as the others are, but a build does without them: `train_gpt serve` then says what it lacks.
optional_headers="
httplib.h          libcpp-httplib-dev
"

# Whether a compiler takes C++20 and, if it is GCC, is of version 12 or later.
works() {
  echo '
#if __cplusplus < 202002L || (defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 12)
#error too old
#endif' | $1 -std=c++20 -E -x c++ - >/dev/null 2>&1
}

find_compiler() {
  local candidate
  for candidate in ${CXX:+"$CXX"} g++ g++-12 g++-13 g++-14 g++-15; do
    # A compiler that the user named is not replaced by another.
    if works "$candidate"; then echo "$candidate" && return 0; fi
    [ -z "${CXX:-}" ] || return 1
  done
  return 1
}

# Sets `missing` to the packages that are needed for the named purposes and not there.
find_missing() {
  missing=()
  local compiler header package probe="" purpose release wanted=$headers
  [ -n "${checking:-}" ] || wanted+=$optional_headers
  # shellcheck disable=SC1091
  release=$(. /etc/os-release 2>/dev/null && echo "${ID:-} ${VERSION_ID:-}" || true)

  if ! compiler=$(find_compiler); then
    [ -z "${CXX:-}" ] || die "CXX=$CXX does not run, or is not a C++20 compiler (g++ 12 or later)"
    # Ubuntu 22.04's g++ is of version 11, but there is a package g++-12.
    if [ "$release" = "ubuntu 22.04" ]; then missing+=(g++-12); else missing+=(g++); fi
  fi
  command -v make >/dev/null || missing+=(make)
  case " $* " in *" onednn "*) wanted+="dnnl.h libdnnl-dev"$'\n' ;; esac
  # One run of the preprocessor finds out which headers are missing. Without a compiler all packages are named, and apt
  # skips those that are installed.
  while read -r header package; do
    [ -n "$header" ] || continue
    probe+="#if !__has_include(<$header>)"$'\n'"missing $package"$'\n'"#endif"$'\n'
  done <<<"$wanted"
  # $compiler and $CPPFLAGS may be several words, so they are not quoted.
  while read -r _ package; do missing+=("$package"); done < <(
    echo "$probe" | if [ -n "$compiler" ]; then $compiler ${CPPFLAGS:-} -std=c++20 -E -P -x c++ -; else cat; fi | grep '^missing '
  )
  for purpose in "$@"; do
    case $purpose in
      demo) command -v bible >/dev/null || missing+=(bible-kjv) ;;
      lint)
        # Versions of clang-format differ in what they make of the same settings: version 14 where there is one.
        command -v clang-format-14 >/dev/null || command -v clang-format >/dev/null ||
          case $release in
            "debian 12" | "ubuntu 22.04" | "ubuntu 24.04") missing+=(clang-format-14) ;;
            *) missing+=(clang-format) ;;
          esac
        ;;
      mpi) command -v mpicxx >/dev/null && command -v mpirun >/dev/null || missing+=(libopenmpi-dev openmpi-bin) ;;
      onednn) ;;
      serve)
        command -v chromium >/dev/null || missing+=(chromium)
        "${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
        ;;
      fuzz) command -v "${FUZZ_CXX:-clang++}" >/dev/null || missing+=(clang) ;;
      *) die "unknown purpose \"$purpose\"; known: demo, lint, fuzz, serve, mpi, onednn" ;;
    esac
  done
}

case ${1:-} in
  --compiler)
    find_compiler || die "no C++20 compiler found${CXX:+ by the name CXX=$CXX} (g++ 12 or later); \`make setup\` installs one"
    exit
    ;;
  --check)
    shift
    checking=1
    find_missing "$@"
    [ ${#missing[@]} = 0 ] || die "missing: ${missing[*]} (Debian's names); \`make setup\` installs them"
    exit
    ;;
  -h | --help)
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
    exit
    ;;
esac

find_missing "$@"
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || die "missing: ${missing[*]} (Debian's names); there is no apt-get here, install them your system's way"
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || die "missing: ${missing[*]}; run as root: apt-get install ${missing[*]}"
  as_root=(sudo)
  # Without a terminal nobody can type a password.
  [ -t 0 ] || as_root=(sudo -n)
  "${as_root[@]}" true 2>/dev/null || die "missing: ${missing[*]}; sudo refuses, run as root: apt-get install ${missing[*]}"
fi
apt() {
  # Waits for another apt-get that holds the lock, instead of failing.
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@"
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
first_error() { grep -m1 '^[EW]:' "$log" || tail -n1 "$log"; }
install() { apt install -y --no-install-recommends "${missing[@]}" </dev/null >"$log" 2>&1; }

echo "setup: installing ${missing[*]}" >&2
# The package lists are fetched only where there are none, or where they are too old to install from. A third-party
# source that cannot be updated may not matter: what counts is whether the packages can be installed.
if ! install; then
  apt -o Acquire::Retries=2 -o APT::Update::Error-Mode=any update </dev/null >"$log" 2>&1 || updated="$(first_error)"
  install || die "cannot install ${missing[*]}: ${updated:-$(first_error)}"
fi

find_missing "$@"
[ ${#missing[@]} = 0 ] || die "still missing after installation: ${missing[*]}"
