#!/usr/bin/env bash
# Builds for a GPU on another machine, which cannot build (no packages, perhaps no compiler), and packs what `make
# gpu-report` would measure there into a folder and an archive.
#
#   scripts/gpu_pack.sh [DIR]       build/gpu-pack by default; beside it DIR.tar
# Settings by environment:
#   CUDA_ARCHS=90a  the compute capabilities of the other machine's GPUs
#   MARCH=x86-64-v3 the CPU of the other machine
#   TEXT=FILE       the text to train on (get_corpus.sh's by default)
#   BPE=FILE        GPT-2's vocabulary (encoder.json or tokenizer.json), to tokenize that text; without it by bytes
#   CXX, NVCC       the compilers
# On the other machine: tar xf gpu-pack.tar && gpu-pack/run.sh OUT
set -euo pipefail
cd "$(dirname "$0")/.."
pack=${1:-build/gpu-pack}
CUDA_ARCHS=${CUDA_ARCHS:-90a} MARCH=${MARCH:-x86-64-v3} BUILD=build/gpu

flags=(CUDA=1 "CUDA_ARCHS=$CUDA_ARCHS" "MARCH=$MARCH" "BUILD=$BUILD")
[ -z "${CXX:-}" ] || flags+=("CXX=$CXX")
[ -z "${NVCC:-}" ] || flags+=("NVCC=$NVCC")
make -j"$(nproc)" "${flags[@]}" $BUILD/train_gpt $BUILD/run_gpu_tests
rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/lib"
for binary in train_gpt run_gpu_tests; do strip -o "$pack/bin/$binary" "$BUILD/$binary"; done
# run.sh takes these libraries only where the loader finds no others.
for library in libonig.so.5 libpcre2-8.so.0 libutf8proc.so.2 libz.so.1 libzstd.so.1 libstdc++.so.6 libgcc_s.so.1; do
  file=$(ldd "$pack/bin/train_gpt" | awk -v l=$library '$1 == l { print $3 }')
  [ -z "$file" ] || cp -L "$file" "$pack/lib/$library"
done
gzip -f "$pack"/bin/*
cp scripts/gpu_measure.sh scripts/gpu_figures.py scripts/torch_step.py "$pack/"
text=${TEXT:-$(scripts/get_corpus.sh)}
head -c 400000 "$text" | iconv -c -f utf-8 -t utf-8 >"$pack/text.txt"
if [ -n "${BPE:-}" ]; then
  head -c 8000000 "$text" | iconv -c -f utf-8 -t utf-8 >"$pack/long.txt"
  $BUILD/train_gpt tokenize "$pack/long.txt" --tokenizer "$BPE" --val-fraction 0.02 --out "$pack/tokens" >&2
  rm "$pack/long.txt"
fi
cat >"$pack/run.sh" <<'END'
#!/usr/bin/env bash
# Measures train_gpt on this machine's GPU (gpu_measure.sh says what can be set): run.sh OUT
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:?run.sh OUT}
mkdir -p "$out/lib"
gunzip -c "$here/bin/train_gpt.gz" >"$out/lib/probe" && chmod +x "$out/lib/probe"
# The toolkit's libraries, and those of PyTorch's wheels, are not always where the loader looks.
for place in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib "$(dirname "$(command -v python3)")"/../lib/python3*/site-packages/nvidia/*/lib; do
  for file in "$place"/libcublasLt.so.1[23]; do
    [ ! -e "$file" ] || [ -e "$out/lib/$(basename "$file")" ] || ln -s "$(readlink -f "$file")" "$out/lib/"
  done
done
export LD_LIBRARY_PATH=$out/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
for library in $(ldd "$out/lib/probe" | awk '/not found/ { print $1 }'); do
  [ ! -e "$here/lib/$library" ] || cp "$here/lib/$library" "$out/lib/"
done
rm "$out/lib/probe"
[ -d "$here/tokens" ] && export DATA=${DATA:-$here/tokens}
export TEXT=${TEXT:-$here/text.txt}
exec "$here/gpu_measure.sh" "$here/bin" "$out"
END
chmod +x "$pack/run.sh"
tar -C "$(dirname "$pack")" -cf "$pack.tar" "$(basename "$pack")"
echo "gpu-pack: $pack.tar ($(du -h "$pack.tar" | cut -f1)); where the GPU is: tar xf $(basename "$pack").tar && $(basename "$pack")/run.sh OUT" >&2
