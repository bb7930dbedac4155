#!/usr/bin/env bash
# Gets a text to train on and prints its path: the King James Bible from Debian's package bible-kjv, one verse a line
# and a blank line between chapters (4.1 MB). Where there is no such package, tiny Shakespeare (1.1 MB) is downloaded
# instead. Both are in the public domain. A text that is there already is not fetched again.
set -euo pipefail
cd "$(dirname "$0")/.."

bible=data/corpus/kjv.txt
shakespeare=data/corpus/tinyshakespeare.txt
shakespeare_url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
shakespeare_sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed

die() {
  echo "corpus: $*" >&2
  exit 1
}

for text in $bible $shakespeare; do
  if [ -s $text ]; then echo $text && exit; fi
done

mkdir -p data/corpus
# A file gets its name only when it is whole.
partial=$(mktemp data/corpus/partial.XXXXXX)
trap 'rm -f "$partial"' EXIT
publish() {
  chmod 644 "$partial"
  mv "$partial" "$1"
  echo "corpus: wrote $1, $(wc -c <"$1") bytes" >&2
  echo "$1"
}

# Each line is "Ge1:1 In the beginning ...": the reference is removed, and a blank line comes before a new chapter.
if command -v bible >/dev/null || scripts/setup.sh demo; then
  bible -f gen1:1-rev22:21 </dev/null | awk '
    { split($1, reference, ":") }
    reference[1] != chapter { if (NR > 1) print ""; chapter = reference[1] }
    { sub(/^[^ ]+ +/, ""); gsub(/  +/, " "); sub(/ +$/, ""); print }' >"$partial"
  verses=$(grep -c . "$partial" || true)
  [ "$verses" = 31102 ] || die "\`bible -f gen1:1-rev22:21\` printed $verses verses instead of 31102"
  publish $bible
  exit
fi

echo "corpus: downloading tiny Shakespeare instead of the Bible" >&2
hint="\`make demo DATA=FILE.txt\` takes any text"
if command -v curl >/dev/null; then
  curl -fsSL --retry 2 --connect-timeout 20 -o "$partial" "$shakespeare_url" || die "the download failed; $hint"
elif command -v wget >/dev/null; then
  wget -q --tries=2 --timeout=20 -O "$partial" "$shakespeare_url" || die "the download failed; $hint"
else
  die "a download needs curl or wget; $hint"
fi
echo "$shakespeare_sha256  $partial" | sha256sum -c --status || die "the download is not the file that was expected (sha256); $hint"
publish $shakespeare
