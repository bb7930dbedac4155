#!/usr/bin/env python3
"""Compares train_gpt with Hugging Face's transformers, in both directions, on random models of every family.

  python3 -m venv .venv && .venv/bin/pip install torch transformers     this script installs nothing by itself
  .venv/bin/python scripts/check_transformers.py [--binary ./train_gpt]  takes about a minute; status 1 where they differ
  .venv/bin/python scripts/check_transformers.py --write                 also keeps the table and some of the models in
                                                                         test/data/transformers

In: transformers makes a model and writes it (one or several safetensors files; F32, BF16 or F16); `train_gpt generate
--logits` and greedy `generate --ids` on that directory are compared with transformers' own results. Out: `train_gpt import`,
then `export`, and transformers reads the exported files. The error of a logit is relative to the largest logit; transformers
computes in float32.
"""
import argparse, json, shutil, subprocess, sys, tempfile
from pathlib import Path
import torch
import transformers
from transformers import (Gemma2Config, Gemma3TextConfig, GemmaConfig, GPT2Config, LlamaConfig, MistralConfig, MixtralConfig, Phi3Config,
                          PhiConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig)

TOLERANCE = 1e-4
PROMPTS = [[1], [5, 9, 2, 77, 30], [(7 * i * i + 3 * i) % 160 for i in range(40)]]
SMALL = dict(vocab_size=160, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
LINEAR, DYNAMIC = dict(rope_type="linear", factor=2.5), dict(rope_type="dynamic", factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
# Beyond 16 tokens, in a text of any length, other divisors: the third prompt is longer, the greedy text becomes so.
LONGROPE = dict(rope_type="longrope", short_factor=[1.0, 1.25, 2.5, 4.0], long_factor=[1.5, 3.0, 9.0, 33.5], original_max_position_embeddings=16)
PART = dict(LONGROPE, short_factor=LONGROPE["short_factor"][:3], long_factor=LONGROPE["long_factor"][:3], partial_rotary_factor=0.75)
# These models are kept for tests without transformers: no other test has such files.
KEPT = {"llama 2, F16": "llama2", "llama 3, BF16, many files": "llama3", "qwen2, yarn": "qwen2-yarn", "phi3": "phi3", "mixtral": "mixtral",
        "qwen3 with experts": "qwen3-moe", "gemma": "gemma", "phi": "phi", "phi3, longrope, in part": "phi3-longrope", "gemma2": "gemma2",
        "gemma3": "gemma3"}


def gpt2(**more):
    return GPT2Config(vocab_size=160, n_positions=64, n_embd=48, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2, **more)


def rotary(theta, scaling=None):
    """The keys of the rotary settings: transformers 5 has one dictionary, older versions have two keys."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return dict(rope_parameters=dict(scaling or dict(rope_type="default"), rope_theta=theta))
    return dict(rope_theta=theta, rope_scaling=scaling)


# name: (config, how the weights are stored, size of the largest file, where a small one makes several files)
MODELS = {
    "gpt2": (lambda: gpt2(), torch.float32, None),
    "gpt2, inner width, untied": (lambda: gpt2(n_inner=80, tie_word_embeddings=False), torch.float32, None),
    "llama 2, F16": (lambda: LlamaConfig(**SMALL, num_key_value_heads=4, tie_word_embeddings=False, **rotary(1e4)), torch.float16, None),
    "llama 3, BF16, many files": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, **rotary(5e5, LLAMA3)), torch.bfloat16, "12KB"),
    "llama 3.2, tied": (lambda: LlamaConfig(**SMALL, num_key_value_heads=1, head_dim=24, tie_word_embeddings=True,
                                            **rotary(5e5, dict(LLAMA3, factor=32.0))), torch.float32, None),
    "qwen3, tied": (lambda: Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=32, tie_word_embeddings=True, **rotary(1e6)), torch.float32, None),
    "qwen3, BF16, many files": (lambda: Qwen3Config(**SMALL, num_key_value_heads=4, head_dim=16, **rotary(1e6)), torch.bfloat16, "20KB"),
    "llama, all biases": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, attention_bias=True, mlp_bias=True, **rotary(1e4)), torch.float32, None),
    "llama, biases of attention": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, attention_bias=True, **rotary(1e4)), torch.float32, None),
    "llama, biases of the MLP": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, mlp_bias=True, **rotary(1e4)), torch.float32, None),
    "llama, linear": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, **rotary(1e4, LINEAR)), torch.float32, None),
    "llama, dynamic": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, **rotary(1e4, DYNAMIC)), torch.float32, None),
    "llama, yarn": (lambda: LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=32, **rotary(1e4, YARN)), torch.float32, None),
    "qwen2, tied": (lambda: Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True, **rotary(1e6)), torch.bfloat16, None),
    "qwen2, yarn": (lambda: Qwen2Config(**SMALL, num_key_value_heads=2, **rotary(1e6, dict(YARN, beta_fast=8, beta_slow=0.5, mscale=0.7, mscale_all_dim=1.2))), torch.bfloat16, None),
    "qwen3, biases, yarn": (lambda: Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=32, attention_bias=True, **rotary(1e6, dict(YARN, attention_factor=1.3))), torch.float32, None),
    "mistral": (lambda: MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None, **rotary(1e4)), torch.float32, None),
    "mistral, window": (lambda: MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=48, **rotary(1e4)), torch.float32, None),
    "phi3": (lambda: Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0, **rotary(1e4)), torch.bfloat16, None),
    "phi": (lambda: PhiConfig(**SMALL, rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)), torch.float16, None),
    "phi, grouped, yarn": (lambda: PhiConfig(**SMALL, num_key_value_heads=2, rope_parameters=dict(YARN, rope_theta=1e4, partial_rotary_factor=0.75)), torch.float32, None),
    "phi3, longrope": (lambda: Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0, original_max_position_embeddings=16,
                                          rope_parameters=dict(LONGROPE, rope_theta=1e4)), torch.float32, None),
    "phi3, longrope, in part": (lambda: Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0, original_max_position_embeddings=16, tie_word_embeddings=True,
                                                   rope_parameters=dict(PART, rope_theta=1e4, attention_factor=1.19)), torch.bfloat16, None),
    "llama, longrope": (lambda: LlamaConfig(**SMALL, num_key_value_heads=1, **rotary(5e5, dict(LONGROPE, factor=6.0))), torch.float32, None),
    "mixtral": (lambda: MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **rotary(1e6)), torch.bfloat16, None),
    "mixtral, many files": (lambda: MixtralConfig(**SMALL, num_key_value_heads=4, num_local_experts=6, num_experts_per_tok=3, **rotary(1e6)), torch.float32, "40KB"),
    "qwen3 with experts": (lambda: Qwen3MoeConfig(**SMALL, num_key_value_heads=2, head_dim=16, num_experts=8, num_experts_per_tok=2,
                                                  moe_intermediate_size=24, norm_topk_prob=True, **rotary(1e6)), torch.bfloat16, None),
    "qwen3 with experts, tied": (lambda: Qwen3MoeConfig(**SMALL, num_key_value_heads=1, head_dim=32, num_experts=5, num_experts_per_tok=4,
                                                        moe_intermediate_size=40, norm_topk_prob=True, tie_word_embeddings=True,
                                                        **rotary(1e6)), torch.float32, "30KB"),
    "gemma": (lambda: GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=24, hidden_act="gelu_pytorch_tanh", **rotary(1e4)), torch.bfloat16, None),
    "gemma2": (lambda: Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, attn_logit_softcapping=None,
                                    final_logit_softcapping=3.0, sliding_window=64, **rotary(1e4)), torch.bfloat16, None),
    "gemma2, no caps": (lambda: Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=24, query_pre_attn_scalar=24, attn_logit_softcapping=None,
                                             final_logit_softcapping=None, sliding_window=4096, **rotary(1e4)), torch.float32, None),
    "gemma3": (lambda: Gemma3TextConfig(**dict(SMALL, num_hidden_layers=3), num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=21, sliding_window=64,
                                        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), torch.bfloat16, None),
    "gemma3, six layers, stretched": (lambda: Gemma3TextConfig(
        **dict(SMALL, num_hidden_layers=7), num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=512, rope_parameters=dict(
            sliding_attention=dict(rope_type="default", rope_theta=500.0), full_attention=dict(LINEAR, rope_theta=1e5))), torch.float32, None),
}
# Read, but what is written is of another class that is the same but for names.
OTHERS = {"mistral": "LlamaForCausalLM", "mistral, window": "LlamaForCausalLM", "phi3": "LlamaForCausalLM", "llama, longrope": "Phi3ForCausalLM"}


def randomize(model):
    """Fills the model with weights far from initial ones, so that attention is not uniform and norms and biases matter."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)


def run(binary, *arguments):
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"train_gpt {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def text(ids):
    return " ".join(map(str, ids))


def compare(model, binary, directory, result, direction):
    for prompt in PROMPTS:
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].float()
        ours = torch.tensor([float(x) for x in run(binary, "generate", directory, "--prompt-ids", text(prompt), "--logits").split()])
        error = ((ours - expected).abs().max() / expected.abs().max()).item()
        result[direction] = max(result.get(direction, 0.0), error)


def keep(model, source, destination):
    destination.mkdir(parents=True, exist_ok=True)
    for file in (*destination.iterdir(),):
        file.unlink()
    for file in source.iterdir():
        shutil.copy(file, destination)
    with torch.no_grad():
        logits = [[round(x, 6) for x in model(torch.tensor([p])).logits[0, -1].tolist()] for p in PROMPTS]
    (destination / "expected.json").write_text(json.dumps(dict(prompts=PROMPTS, logits=logits)) + "\n")


def check(name, binary, folder, kept):
    make, dtype, shard = MODELS[name]
    torch.manual_seed(0)
    theirs = folder / "theirs"
    model = transformers.AutoModelForCausalLM.from_config(make())
    randomize(model)
    model.to(dtype).save_pretrained(theirs, **(dict(max_shard_size=shard) if shard else {}))
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32).eval()  # what the files hold
    if kept and name in KEPT:
        keep(model.eval(), theirs, kept / KEPT[name])
    result = dict(model=name, files=len(list(theirs.glob("*.safetensors"))))
    compare(model, binary, theirs, result, "in")
    greedy = list(PROMPTS[1])
    for _ in range(20):
        with torch.no_grad():
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    ours = run(binary, "generate", theirs, "--prompt-ids", text(PROMPTS[1]), "--temperature", 0, "--max-tokens", 20, "--ids", "--no-stop")
    result["greedy_ids_equal"] = greedy[len(PROMPTS[1]):] == [int(x) for x in ours.split()]
    result.update(out=0.0, weights_equal=True)
    run(binary, "import", theirs, "--out", folder / "run")
    run(binary, "export", folder / "run", "--out", folder / "ours")
    back, report = transformers.AutoModelForCausalLM.from_pretrained(folder / "ours", output_loading_info=True, dtype=torch.float32)
    wrong = {key: sorted(report[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    if wrong:
        sys.exit(f"{name}: transformers reads the export with {wrong}")
    compare(back.eval(), binary, folder / "run", result, "out")
    state, original = back.state_dict(), model.state_dict()
    if name in OTHERS:
        state, original = {}, {}  # their names are others
    # (The weights of Gemma's norms are 1 more inside, which rounds them.)
    same = lambda key: torch.allclose(state[key], original[key], rtol=0, atol=1e-7) if name.startswith("gemma") else torch.equal(state[key], original[key])
    result["class"] = type(back).__name__
    result["weights_equal"] = state.keys() == original.keys() and all(same(key) for key in state) and result["class"] == OTHERS.get(name, type(model).__name__)
    return result


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=str(root / "train_gpt"))
    parser.add_argument("--write", action="store_true", help="keep the table, and some models with their logits, in test/data/transformers")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    table, good, data = [], True, root / "test/data/transformers"
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            r = check(name, a.binary, Path(folder), data if a.write else None)
        table.append(r)
        ok = max(r["in"], r["out"]) < TOLERANCE and r["greedy_ids_equal"] and r["weights_equal"]
        good &= ok
        print(f"{'ok ' if ok else 'BAD'} {name} ({r['files']} files, {r['class']}): logits in {r['in']:.1e}, out {r['out']:.1e}, "
              f"greedy ids {'equal' if r['greedy_ids_equal'] else 'DIFFER'}, weights {'equal' if r['weights_equal'] else 'DIFFER'}")
    if a.write:
        lines = ",\n".join("  " + json.dumps(r) for r in table)
        (data / "results.json").write_text(
            f'{{"torch": "{torch.__version__}", "transformers": "{transformers.__version__}", "models": [\n{lines}\n]}}\n')
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
