#!/usr/bin/env python3
"""Compares train_gpt with llama.cpp and the package gguf, in both directions.

  python3 -m venv .venv && .venv/bin/pip install numpy gguf llama-cpp-python     this script installs nothing by itself
  .venv/bin/python scripts/check_gguf.py [--binary ./train_gpt] MODEL...         runs or directories; status 1 where they differ

Out: each MODEL is exported in every type. The package gguf reads the file, llama.cpp runs it: its logits are compared with
those of `generate --logits` on the same file, and in F32 its greedy tokens, and the tokens of a text where the model has a
tokenizer. In: the package's writer writes the tensors and the least of fields anew, and train_gpt must give the same logits.
The error of a logit is relative to the largest logit. llama.cpp has GELU in 16 bits; but for F32 it rounds activations, too.
"""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path
import gguf
import llama_cpp
import numpy as np

BOUNDS = {"F32": 1e-3, "F16": 5e-3, "BF16": 5e-2, "Q8_0": 5e-2, "Q4_0": 8e-2}
TEXT = "Once upon a time there was a small dog. It's 12345 years old,  isn't it?\n\nÄ 日本"


def train_gpt(*arguments):
    done = subprocess.run([str(args.binary), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"train_gpt {' '.join(map(str, arguments))}: {done.stderr}")
    return done.stdout


def ids(values):
    return " ".join(map(str, values))


def our_logits(model, prompt):
    return np.array(train_gpt("generate", model, "--prompt-ids", ids(prompt), "--logits", "--threads", 1).split(), dtype=np.float64)


def open_llama(path):
    return llama_cpp.Llama(str(path), n_ctx=0, logits_all=True, verbose=False, n_threads=1, flash_attn=False,
                           type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


def llama_logits(model, prompt):
    model.reset()
    model.eval(prompt)
    return np.array(model.scores[len(prompt) - 1], dtype=np.float64)


def greedy(model, prompt, count):
    tokens = list(prompt)
    model.reset()
    model.eval(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(tokens[-1:])
    return tokens[len(prompt):]


def rewrite(path, to):
    """The same model by the package's own writer, with no more fields than a reader needs."""
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    architecture = field("general.architecture")
    writer = gguf.GGUFWriter(to, architecture)
    writer.add_context_length(field(f"{architecture}.context_length"))
    writer.add_embedding_length(field(f"{architecture}.embedding_length"))
    writer.add_block_count(field(f"{architecture}.block_count"))
    writer.add_feed_forward_length(field(f"{architecture}.feed_forward_length"))
    writer.add_head_count(field(f"{architecture}.attention.head_count"))
    writer.add_head_count_kv(field(f"{architecture}.attention.head_count_kv"))
    if architecture == "gpt2":
        writer.add_layer_norm_eps(field("gpt2.attention.layer_norm_epsilon"))
    else:
        writer.add_layer_norm_rms_eps(field(f"{architecture}.attention.layer_norm_rms_epsilon"))
        writer.add_rope_freq_base(field(f"{architecture}.rope.freq_base"))
        writer.add_key_length(field(f"{architecture}.attention.key_length"))
        writer.add_value_length(field(f"{architecture}.attention.value_length"))
    kind = field("tokenizer.ggml.model")
    writer.add_tokenizer_model(kind)
    if kind != "none":
        writer.add_tokenizer_pre(field("tokenizer.ggml.pre"))
        writer.add_token_list(field("tokenizer.ggml.tokens"))
        writer.add_token_types(field("tokenizer.ggml.token_type"))
        if kind == "llama":
            writer.add_token_scores(field("tokenizer.ggml.scores"))
        elif field("tokenizer.ggml.merges"):
            writer.add_token_merges(field("tokenizer.ggml.merges"))
        for name in ("bos", "eos", "unknown"):
            if f"tokenizer.ggml.{name}_token_id" in reader.fields:
                writer.add_uint32(f"tokenizer.ggml.{name}_token_id", field(f"tokenizer.ggml.{name}_token_id"))
        writer.add_add_bos_token(field("tokenizer.ggml.add_bos_token"))
    for tensor in reader.tensors:
        quantized = tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check(model, folder):
    failures = 0
    whole = None
    for kind, bound in BOUNDS.items():
        path = folder / f"{kind}.gguf"
        path.unlink(missing_ok=True)
        train_gpt("export", model, "--format", "gguf", "--type", kind, "--out", path)
        reader = gguf.GGUFReader(path)
        matrices = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        whole = whole or matrices
        weights = max(float(np.abs(matrices[n] - whole[n]).max() / np.abs(whole[n]).max()) for n in whole)
        vocabulary = matrices["token_embd.weight"].shape[0]
        context = reader.fields[reader.fields["general.architecture"].contents() + ".context_length"].contents()
        prompts = [[1], [5, 9, 2, 7, 3], [(7 * i * i + 3 * i) % min(vocabulary, 160) for i in range(min(40, context))]]
        made = min(24, context - 5)
        other = open_llama(path)
        error = 0
        for prompt in prompts:
            ours, theirs = our_logits(path, prompt), llama_logits(other, prompt)
            error = max(error, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        wrong = [] if error <= bound else ["logits"]
        if kind == "F32":
            mine = train_gpt("generate", path, "--prompt-ids", ids(prompts[1]), "--temperature", 0, "--max-tokens", made, "--ids", "--no-stop")
            if mine.split() != [str(t) for t in greedy(other, prompts[1], made)]:
                wrong.append("greedy tokens")
            if "tokenizer.ggml.tokens" in reader.fields:
                mine = subprocess.run([str(args.binary), "tokenize", "-", "--tokenizer", str(path), "--ids"], input=TEXT, capture_output=True, text=True)
                theirs = [str(t) for t in other.tokenize(TEXT.encode(), add_bos=False, special=False)]
                if mine.stdout.split() != theirs:
                    wrong.append(f"tokens of a text: {mine.stdout.split()} {theirs} {mine.stderr}")
        again = folder / f"{kind}-again.gguf"
        rewrite(path, again)
        if not (our_logits(again, prompts[2]) == our_logits(path, prompts[2])).all():
            wrong.append("logits of the package's file")
        if kind == "F32" and "tokenizer.ggml.tokens" in reader.fields:
            mine = [subprocess.run([str(args.binary), "tokenize", "-", "--tokenizer", str(p), "--ids"], input=TEXT, capture_output=True, text=True) for p in (path, again)]
            if mine[0].stdout != mine[1].stdout:
                wrong.append(f"tokens by the package's file: {mine[1].stdout} {mine[1].stderr}")
        print(f"{Path(model).name:24} {kind:5} weights to {weights:.1e}, logits to {error:.1e} of llama.cpp's{''.join(': WRONG ' + w for w in wrong)}", flush=True)
        failures += len(wrong)
    return failures


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("models", nargs="+")
parser.add_argument("--binary", type=Path, default=Path("./train_gpt"))
args = parser.parse_args()
with tempfile.TemporaryDirectory() as temporary:
    failed = sum(check(model, Path(temporary)) for model in args.models)
sys.exit(1 if failed else 0)
