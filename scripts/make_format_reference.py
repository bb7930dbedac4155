#!/usr/bin/env python3
"""Writes small files in other programs' formats, with PyTorch's numbers for them, for the tests.

  python3 scripts/make_format_reference.py                   needs torch, numpy and tokenizers (pip); takes seconds

test/data/llmc/     a GPT-2 as llm.c writes it (model.bin, version 3); what llm.c's own test checks, in the format of its
                    gpt2_124M_debug_state.bin (debug_state.bin): one batch, logits, loss and gradients; losses.json: the
                    losses of ten steps on that batch
test/data/choices/  a Llama with a tokenizer of 37 tokens; choices.jsonl, tasks in HellaSwag's format; expected.json: the
                    log-likelihood of each ending, computed without a batch in float64, and the loss of a text
"""
import json, math, struct
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from make_reference import config_json, forward, random_weights, write_safetensors

OUT = Path(__file__).resolve().parent.parent / "test/data"
GPT2 = dict(vocab_size=61, context=20, layers=2, heads=2, kv_heads=2, channels=16, head_size=8, hidden=64, norm="layernorm",
            positions="learned", activation="gelu", qk_norm=False, bias=True, tied_head=True, norm_epsilon=1e-5, rope_theta=0.0)
LLAMA = dict(vocab_size=37, context=80, layers=2, heads=4, kv_heads=2, channels=16, head_size=4, hidden=24, norm="rmsnorm",
             positions="rope", activation="swiglu", qk_norm=False, bias=False, tied_head=False, norm_epsilon=1e-5, rope_theta=1e4)
PADDED = 64                                                   # rows of the file's embedding (llm.c: n x 128)
BATCH, TOKENS, STEPS = 4, 16, 10


def llmc_tensors(c, w):
    """In llm.c's order: each kind of tensor for all layers; matrices are (out, in), the embedding is padded with zeros."""
    w = {name.replace("transformer.", ""): x for name, x in w.items()}
    pad = np.zeros((PADDED - c["vocab_size"], c["channels"]), dtype=np.float32)
    yield np.concatenate([w["wte.weight"], pad])
    yield w["wpe.weight"]
    for name in ("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias",
                 "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"):
        for layer in range(c["layers"]):
            x = w[f"h.{layer}.{name}"]
            yield x.T if x.ndim == 2 else x
    yield w["ln_f.weight"]
    yield w["ln_f.bias"]


def write_llmc(folder):
    c, rng = GPT2, np.random.RandomState(11)
    weights = random_weights("gpt2", c, rng)
    walk = rng.randint(0, c["vocab_size"], (BATCH, TOKENS + 1))
    x, y = torch.tensor(walk[:, :-1]), torch.tensor(walk[:, 1:])
    w = {name: torch.tensor(p, dtype=torch.float64, requires_grad=True) for name, p in weights.items()}
    # As in llm.c's test, but without its decay of 0.01, which moves the losses by less than the test's tolerance.
    adamw = torch.optim.AdamW(list(w.values()), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        adamw.zero_grad()
        logits = forward("gpt2", w, c, x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        if step == 0:
            first = logits.detach().float().numpy(), loss.item(), {n: p.grad.float().numpy() for n, p in w.items()}
        losses.append(loss.item())
        adamw.step()
    folder.mkdir(parents=True, exist_ok=True)
    header = np.zeros(256, dtype="<i4")
    header[:8] = 20240326, 3, c["context"], c["vocab_size"], c["layers"], c["heads"], c["channels"], PADDED
    with open(folder / "model.bin", "wb") as f:
        f.write(header.tobytes())
        for tensor in llmc_tensors(c, weights):
            f.write(np.ascontiguousarray(tensor, dtype="<f4").tobytes())
    header = np.zeros(256, dtype="<i4")
    header[:4] = 20240327, 2, BATCH, TOKENS
    with open(folder / "debug_state.bin", "wb") as f:
        f.write(header.tobytes() + walk[:, :-1].astype("<i4").tobytes() + walk[:, 1:].astype("<i4").tobytes())
        f.write(first[0].astype("<f4").tobytes() + struct.pack("<f", first[1]))
        # llm.c's gradients have the embedding's rows without the padding.
        for i, tensor in enumerate(llmc_tensors(c, first[2])):
            f.write(np.ascontiguousarray(tensor[:c["vocab_size"]] if i == 0 else tensor, dtype="<f4").tobytes())
    (folder / "losses.json").write_text(json.dumps(dict(torch=torch.__version__, losses=losses)) + "\n")
    print(f"llmc: losses {losses[0]:.6f} -> {losses[-1]:.6f}")


def tokenizer_json():
    """Characters, with a few merges; a blank is written as U+2581, one comes first, and <s> before it."""
    blank = "\u2581"
    merges = [["t", "h"], ["th", "e"], [blank, "a"], ["i", "n"], ["e", "r"], [blank, "the"]]
    tokens = ["<unk>", "<s>", "</s>", blank] + [chr(ord("a") + i) for i in range(26)] + ["."] + [a + b for a, b in merges]
    assert len(tokens) == LLAMA["vocab_size"]
    added = [dict(id=i, content=tokens[i], single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i in range(3)]
    template = [dict(SpecialToken=dict(id="<s>", type_id=0)), dict(Sequence=dict(id="A", type_id=0))]
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=added,
        normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend=blank),
                                                      dict(type="Replace", pattern=dict(String=" "), content=blank)]),
        pre_tokenizer=None,
        post_processor=dict(type="TemplateProcessing", single=template, pair=template,
                            special_tokens={"<s>": dict(id="<s>", ids=[1], tokens=["<s>"])}),
        decoder=dict(type="Sequence", decoders=[dict(type="Replace", pattern=dict(String=blank), content=" "), dict(type="Fuse"),
                                                dict(type="Strip", content=" ", start=1, stop=0)]),
        model=dict(type="BPE", dropout=None, unk_token="<unk>", continuing_subword_prefix=None, end_of_word_suffix=None,
                   fuse_unk=True, byte_fallback=False, ignore_merges=False, vocab={t: i for i, t in enumerate(tokens)}, merges=merges))


def write_choices(folder):
    c, rng = LLAMA, np.random.RandomState(12)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: 3 * x if x.ndim == 2 else x for n, x in random_weights("llama", c, rng).items()}
    write_safetensors(folder / "model.safetensors", weights)
    config = config_json("llama", c)
    config.update(bos_token_id=1, eos_token_id=2)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(), ensure_ascii=False) + "\n")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = "the a hen in winter ran into barn then ate her dinner. and thin air is there other quiz fox jumps over".split()
    text = lambda n: " ".join(words[i] for i in rng.randint(0, len(words), n))
    # 40 tasks: short and long ones, one that does not fit the context, an empty context, blanks at the seam.
    tasks = [dict(ctx=text(rng.randint(1, 9)), endings=[text(rng.randint(1, 7)) for _ in range(4)], label=int(rng.randint(4)))
             for _ in range(40)]
    tasks[3]["ctx"], tasks[5]["ctx"], tasks[9]["endings"][2] = text(40), "", " " + text(2)
    tasks[7]["ctx"] += " "
    tasks[8]["label"] = str(tasks[8]["label"])                # as some copies of HellaSwag have it
    w = {name: torch.tensor(p, dtype=torch.float64) for name, p in weights.items()}

    def log_probabilities(ids):                               # of ids[1:]
        logits = forward("llama", w, c, torch.tensor([ids[:-1]]))
        return F.log_softmax(logits[0], -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()

    expected = dict(torch=torch.__version__, log_likelihoods=[], tokens=[])
    right = np.zeros(3, dtype=int)
    for task in tasks:
        alone, scores = tokenizer.encode(task["ctx"].rstrip()).ids, []
        for ending in task["endings"]:
            ids = tokenizer.encode(task["ctx"] + " " + ending).ids
            n = len(ids) - len(alone)
            ids = alone + ids[len(alone):]
            ids = ids[-(c["context"] + 1):]
            total = sum(log_probabilities(ids)[-n:])
            scores.append((total, total / n, total / len(ending.encode()), n))
        expected["log_likelihoods"].append([s[0] for s in scores])
        expected["tokens"].append([s[3] for s in scores])
        for kind in range(3):
            right[kind] += max(range(len(scores)), key=lambda i: scores[i][kind]) == int(task["label"])
    expected.update(right=int(right[0]), right_per_token=int(right[1]), right_per_byte=int(right[2]))
    # A text's loss: windows of the context without overlap, every token but the first predicted once.
    story = text(150)
    ids, loss = tokenizer.encode(story, add_special_tokens=False).ids, []
    for begin in range(0, len(ids) - 1, c["context"]):
        loss += log_probabilities(ids[begin:begin + c["context"] + 1])
    nats = -sum(loss)
    expected.update(text=story, loss=nats / len(loss), predicted=len(loss), perplexity=math.exp(nats / len(loss)),
                    bits_per_byte=nats / len(loss) / math.log(2) * len(ids) / len(story))
    (folder / "choices.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    (folder / "expected.json").write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in expected.items()) + "\n}\n")
    print(f"choices: {len(tasks)} tasks, right {right}, loss {expected['loss']:.6f}, {expected['bits_per_byte']:.6f} bits/byte")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_llmc(OUT / "llmc")
    write_choices(OUT / "choices")
