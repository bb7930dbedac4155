#!/usr/bin/env python3
"""Compares `train_gpt eval --choices` with lm-evaluation-harness: the same models, the same 240 multiple-choice tasks.

  python3 -m venv .venv && .venv/bin/pip install torch transformers 'lm-eval>=0.4.13'   this script installs nothing by itself
  .venv/bin/python scripts/check_lm_eval.py [--binary ./train_gpt]    takes about a minute; status 1 where they differ
  .venv/bin/python scripts/check_lm_eval.py --write                   also keeps tasks, models and lm-eval's figures in
                                                                      test/data/lm_eval

Two small random models that transformers writes: a GPT-2 with a byte-level BPE, which begins no text with a token of its own,
and a Llama with a BPE as SentencePiece makes them, which begins every text with <s>. lm-eval reads them by its own "hf" backend,
in float32. Accuracy in total (acc), per character (acc_norm) and per byte (acc_bytes) must be equal in every figure, the endings'
log-likelihoods within TOLERANCE nats for each nat.
"""
import argparse, json, logging, os, random, shutil, subprocess, sys, tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TOLERANCE = 2e-5
TASKS = 240
WORDS = ("the a hen in winter ran into barn then ate her dinner. and thin air, is there other quiz fox jumps over straße café año "
         "naïve Größe! привет мир 日本 東京 😀 don't it's 1984 3.14 (well) \"so\" x=y").split()


def make_tasks():
    rng = random.Random(17)
    text = lambda n: " ".join(rng.choice(WORDS) for _ in range(n))
    tasks = [dict(ctx=text(rng.randint(1, 12)), endings=[text(rng.randint(1, 6)) for _ in range(rng.randint(2, 5))]) for _ in range(TASKS)]
    for i in range(0, TASKS, 24):  # what is unusual: no context, one longer than the model's, blanks and lines at the seam
        tasks[i]["ctx"] = ""
        tasks[i + 1]["ctx"] = text(90)
        tasks[i + 2]["ctx"] += rng.choice([" ", "  ", "\n", "\u00a0", " \n\n"])
        tasks[i + 3]["endings"] = [" " + e for e in tasks[i + 3]["endings"]]
        tasks[i + 4]["ctx"] = "Question: " + tasks[i + 4]["ctx"] + "?\nAnswer:"
        tasks[i + 5]["endings"] = ["A", "B", "C", "D"]
        tasks[i + 6]["ctx"] = rng.choice([" ", "\n"]) + tasks[i + 6]["ctx"]
        tasks[i + 7]["endings"] = [e + " " for e in tasks[i + 7]["endings"]]
    for task in tasks:
        task["label"] = rng.randrange(len(task["endings"]))
    return tasks


def byte_level():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken("<|endoftext|>", special=True, normalized=False)]
    return t, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)


def sentencepiece():
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    t.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = [AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")] + [f"<0x{b:02X}>" for b in range(256)]
    return t, trainers.BpeTrainer(vocab_size=360, special_tokens=special, max_token_length=8, limit_alphabet=40, show_progress=False)


def make_gpt2():
    tokenizer, trainer = byte_level()
    config = transformers.GPT2Config(n_positions=64, n_embd=16, n_layer=2, n_head=2, vocab_size=320, bos_token_id=0, eos_token_id=0)
    return tokenizer, trainer, config, dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def make_llama():
    tokenizer, trainer = sentencepiece()
    config = transformers.LlamaConfig(max_position_embeddings=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                                      num_key_value_heads=1, vocab_size=360, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True)
    return tokenizer, trainer, config, dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")


MODELS = {"gpt2": make_gpt2, "llama": make_llama}


def write_model(name, tasks, folder):
    tokenizer, trainer, config, special = MODELS[name]()
    tokenizer.train_from_iterator([t["ctx"] + " " + e for t in tasks for e in t["endings"]], trainer)
    assert tokenizer.get_vocab_size() <= config.vocab_size, tokenizer.get_vocab_size()
    if name == "llama":
        plain = json.loads(tokenizer.to_str())
        plain["added_tokens"] = [t for t in plain["added_tokens"] if not t["content"].startswith("<0x")]
        tokenizer = Tokenizer.from_str(json.dumps(plain))
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(0.4 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    model.to(torch.float16).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(folder)


def by_lm_eval(folder, tasks_file):
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM

    task = ConfigurableTask(config=dict(
        task="choices", dataset_path="json", dataset_kwargs=dict(data_files=str(tasks_file)), test_split="train", output_type="multiple_choice",
        doc_to_text="ctx", doc_to_choice="endings", doc_to_target="label",
        metric_list=[dict(metric=m, aggregation="mean", higher_is_better=True) for m in ("acc", "acc_norm", "acc_bytes")]))
    model = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8)
    results = simple_evaluate(model=model, tasks=[task], log_samples=True, bootstrap_iters=0)
    samples = sorted(results["samples"]["choices"], key=lambda s: s["doc_id"])
    figures = {ours: results["results"]["choices"][theirs] for ours, theirs in
               (("accuracy", "acc,none"), ("accuracy_per_character", "acc_norm,none"), ("accuracy_per_byte", "acc_bytes,none"))}
    return figures, [[float(r[0][0]) for r in s["resps"]] for s in samples]


def by_train_gpt(binary, folder, tasks_file, scores_file):
    done = subprocess.run([binary, "eval", folder, "--choices", tasks_file, "--format", "json", "--scores", scores_file],
                          capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"train_gpt: {done.stderr.strip()}")
    return json.loads(done.stdout), [json.loads(line) for line in scores_file.read_text().splitlines()]


def main():
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=str(root / "train_gpt"))
    parser.add_argument("--write", action="store_true", help="keep tasks, models and lm-eval's figures in test/data/lm_eval")
    a = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    tasks, good = make_tasks(), True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks_file = folder / "tasks.jsonl"
        tasks_file.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in tasks))
        os.environ["HF_HOME"] = str(folder / "cache")
        for kind in MODELS:
            write_model(kind, tasks, folder / kind)
            figures, scores = by_lm_eval(folder / kind, tasks_file)
            ours, own_scores = by_train_gpt(a.binary, folder / kind, tasks_file, folder / "scores")
            equal = all(ours[key] == value for key, value in figures.items())
            errors = [(abs(x - y) / max(1, abs(y)), i, k) for i, (mine, theirs) in enumerate(zip(own_scores, scores))
                      for k, (x, y) in enumerate(zip(mine, theirs))]
            worst = max(errors)
            ok = equal and worst[0] < TOLERANCE and len(own_scores) == len(scores) == TASKS
            good &= ok
            print(f"{'ok ' if ok else 'BAD'} {kind}: " + ", ".join(f"{k} {ours[k]:.6f} ({v:.6f})" for k, v in figures.items()) +
                  f"; log-likelihoods within {worst[0]:.1e}")
            for error, i, k in [e for e in errors if e[0] >= TOLERANCE][:10]:
                print(f"    task {i}, ending {k}: {own_scores[i][k]:.6f}, lm-eval {scores[i][k]:.6f}: {json.dumps(tasks[i], ensure_ascii=False)[:200]}")
            if a.write:
                kept = root / "test/data/lm_eval" / kind
                kept.mkdir(parents=True, exist_ok=True)
                for file in ("config.json", "model.safetensors", "tokenizer.json"):
                    shutil.copy(folder / kind / file, kept)
                (kept / "expected.json").write_text(json.dumps(dict(figures, log_likelihoods=[[round(x, 5) for x in s] for s in scores])) + "\n")
        if a.write:
            shutil.copy(tasks_file, root / "test/data/lm_eval/tasks.jsonl")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
