#!/usr/bin/env python3
"""Writes PyTorch's numbers for four small GPTs to test/data/reference/<kind>/: the whole-model tests compare with them.

  python3 scripts/make_reference.py                          needs only torch and numpy; takes seconds
  python3 scripts/make_reference.py --check-transformers     checks these files with Hugging Face's own classes

Files of a kind:
  model.safetensors      the weights, float32, Hugging Face's names, shapes and transposes
  config.json            Hugging Face's, or train_gpt's own for the model that Hugging Face has no class for (relu2)
  gradients.safetensors  d(loss of batch 0)/d(parameter), computed in float64, stored as float32 under the same names
  expected.json          batches, loss, logits, ten AdamW steps (float64), and how far torch's own float32 is from them

The models are written out below in plain tensor operations, so that they can be read next to the C++. Random numbers come
from numpy's RandomState, whose stream is frozen: another version of torch starts from the same weights and batches.
"""
import argparse, json, math, struct
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F

BATCH, TOKENS, STEPS = 3, 11, 10
LOGIT_POSITIONS = [(0, 0), (0, 10), (1, 4), (2, 7)]          # (row of batch 0, position)
OPTIMIZER = dict(learning_rate=3e-3, beta1=0.9, beta2=0.95, epsilon=1e-8, weight_decay=0.1, grad_clip=1.0)

# All files together are to stay below 400 KB, most of which are weights and gradients: hence only one layer in two
# kinds.
KINDS = {
    "gpt2": dict(vocab_size=61, context=16, layers=2, heads=2, kv_heads=2, channels=24, head_size=12, hidden=96, norm="layernorm",
                 positions="learned", activation="gelu", qk_norm=False, bias=True, tied_head=True, norm_epsilon=1e-5, rope_theta=0.0),
    "llama": dict(vocab_size=37, context=16, layers=1, heads=4, kv_heads=2, channels=32, head_size=8, hidden=40, norm="rmsnorm",
                  positions="rope", activation="swiglu", qk_norm=False, bias=False, tied_head=False, norm_epsilon=1e-5, rope_theta=1e4),
    "qwen3": dict(vocab_size=37, context=16, layers=1, heads=4, kv_heads=2, channels=32, head_size=12, hidden=40, norm="rmsnorm",
                  positions="rope", activation="swiglu", qk_norm=True, bias=False, tied_head=True, norm_epsilon=1e-6, rope_theta=1e4),
    "relu2": dict(vocab_size=37, context=16, layers=2, heads=2, kv_heads=2, channels=16, head_size=8, hidden=64, norm="rmsnorm",
                  positions="rope", activation="relu2", qk_norm=True, bias=False, tied_head=False, norm_epsilon=1e-5, rope_theta=1e4),
}


def parameter_shapes(kind, c):
    """{Hugging Face name: shape}. GPT-2's matrices are Conv1D's, stored (in, out); all others are nn.Linear's, (out, in)."""
    V, C, H = c["vocab_size"], c["channels"], c["hidden"]
    Q, K = c["heads"] * c["head_size"], c["kv_heads"] * c["head_size"]
    s = {}
    if kind == "gpt2":
        s["transformer.wte.weight"], s["transformer.wpe.weight"] = (V, C), (c["context"], C)
        for i in range(c["layers"]):
            p = f"transformer.h.{i}."
            for name, shape in [("ln_1", (C,)), ("attn.c_attn", (C, 3 * C)), ("attn.c_proj", (C, C)), ("ln_2", (C,)),
                                ("mlp.c_fc", (C, H)), ("mlp.c_proj", (H, C))]:
                s[p + name + ".weight"], s[p + name + ".bias"] = shape, shape[-1:]
        s["transformer.ln_f.weight"], s["transformer.ln_f.bias"] = (C,), (C,)
        return s
    s["model.embed_tokens.weight"] = (V, C)
    for i in range(c["layers"]):
        p = f"model.layers.{i}."
        s[p + "input_layernorm.weight"] = (C,)
        for name, shape in [("q_proj", (Q, C)), ("k_proj", (K, C)), ("v_proj", (K, C)), ("o_proj", (C, Q))]:
            s[p + f"self_attn.{name}.weight"] = shape
        if c["qk_norm"]:
            s[p + "self_attn.q_norm.weight"] = s[p + "self_attn.k_norm.weight"] = (c["head_size"],)
        s[p + "post_attention_layernorm.weight"] = (C,)
        if c["activation"] == "swiglu":
            s[p + "mlp.gate_proj.weight"] = (H, C)
        s[p + "mlp.up_proj.weight"], s[p + "mlp.down_proj.weight"] = (H, C), (C, H)
    s["model.norm.weight"] = (C,)
    if not c["tied_head"]:
        s["lm_head.weight"] = (V, C)
    return s


def random_weights(kind, c, rng):
    """Far larger than a real initialisation (0.02), so that attention is not uniform and no gradient is negligible."""
    w = {}
    for name, shape in parameter_shapes(kind, c).items():
        x = rng.standard_normal(shape)
        x = 0.2 * x if len(shape) == 2 else 0.1 * x if name.endswith(".bias") else 1 + 0.1 * x
        w[name] = x.astype(np.float32)
    return w


def random_batches(c, rng):
    """[(tokens (B, T), targets (B, T))]: a noisy walk, token' = 3 token + 1 + noise, so that there is something to learn."""
    batches = []
    for _ in range(STEPS):
        walk = np.zeros((BATCH, TOKENS + 1), dtype=np.int64)
        walk[:, 0] = rng.randint(0, c["vocab_size"], BATCH)
        for t in range(TOKENS):
            walk[:, t + 1] = (3 * walk[:, t] + 1 + rng.randint(0, 4, BATCH)) % c["vocab_size"]
        batches.append((torch.from_numpy(walk[:, :-1].copy()), torch.from_numpy(walk[:, 1:].copy())))
    return batches


def rms_norm(x, weight, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rope(x, theta):                          # x: (B, heads, T, head_size); rotates halves, as Hugging Face does
    T, d = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
    angle = torch.arange(T, dtype=x.dtype)[:, None] * frequency                      # (T, d/2)
    cos, sin = angle.cos(), angle.sin()
    x1, x2 = x[..., : d // 2], x[..., d // 2:]
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def attention(q, k, v):                      # q: (B, heads, T, d), k and v: (B, kv_heads, T, d) -> (B, T, heads * d)
    B, heads, T, d = q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-2, -1) / math.sqrt(d)
    scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, heads * d)


def forward_gpt2(w, c, tokens):
    B, T = tokens.shape
    w = {name.replace("transformer.", ""): p for name, p in w.items()}
    linear = lambda x, name: x @ w[name + ".weight"] + w[name + ".bias"]             # Conv1D
    norm = lambda x, name: F.layer_norm(x, x.shape[-1:], w[name + ".weight"], w[name + ".bias"], c["norm_epsilon"])
    x = w["wte.weight"][tokens] + w["wpe.weight"][:T]
    for i in range(c["layers"]):
        p = f"h.{i}."
        qkv = linear(norm(x, p + "ln_1"), p + "attn.c_attn").view(B, T, 3, c["heads"], c["head_size"])
        x = x + linear(attention(*qkv.permute(2, 0, 3, 1, 4)), p + "attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, p + "ln_2"), p + "mlp.c_fc"), approximate="tanh"), p + "mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def forward_llama(w, c, tokens):                             # llama, qwen3 and relu2
    B, T = tokens.shape
    norm = lambda x, name: rms_norm(x, w[name + ".weight"], c["norm_epsilon"])
    linear = lambda x, name: F.linear(x, w[name + ".weight"])
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(c["layers"]):
        p = f"model.layers.{i}."
        y = norm(x, p + "input_layernorm")
        q, k, v = (linear(y, p + f"self_attn.{n}_proj").view(B, T, -1, c["head_size"]) for n in "qkv")
        if c["qk_norm"]:
            q, k = norm(q, p + "self_attn.q_norm"), norm(k, p + "self_attn.k_norm")
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        y = attention(rope(q, c["rope_theta"]), rope(k, c["rope_theta"]), v)
        x = x + linear(y, p + "self_attn.o_proj")
        y = norm(x, p + "post_attention_layernorm")
        up = linear(y, p + "mlp.up_proj")
        y = F.relu(up).square() if c["activation"] == "relu2" else F.silu(linear(y, p + "mlp.gate_proj")) * up
        x = x + linear(y, p + "mlp.down_proj")
    head = "model.embed_tokens" if c["tied_head"] else "lm_head"
    return linear(norm(x, "model.norm"), head)


def forward(kind, w, c, tokens):                             # -> logits (B, T, V)
    return (forward_gpt2 if kind == "gpt2" else forward_llama)(w, c, tokens)


def run(kind, c, weights, batches, dtype):
    """Loss, logits and gradients of batch 0 at the initial weights, then STEPS steps of AdamW, one batch each."""
    w = {name: torch.tensor(x, dtype=dtype, requires_grad=True) for name, x in weights.items()}  # copies, which AdamW writes
    o = OPTIMIZER
    matrices, vectors = ([p for p in w.values() if (p.dim() == 2) == matrix] for matrix in (True, False))
    adamw = torch.optim.AdamW([dict(params=matrices, weight_decay=o["weight_decay"]), dict(params=vectors, weight_decay=0.0)],
                              lr=o["learning_rate"], betas=(o["beta1"], o["beta2"]), eps=o["epsilon"])

    def loss_of(batch):
        logits = forward(kind, w, c, batch[0])
        return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten()), logits

    r = dict(losses=[], grad_norms=[])
    for step, batch in enumerate(batches):
        adamw.zero_grad()
        loss, logits = loss_of(batch)
        loss.backward()
        if step == 0:
            r["logits"] = logits.detach().clone()
            r["gradients"] = {name: p.grad.clone() for name, p in w.items()}
        r["losses"].append(loss.item())
        r["grad_norms"].append(float(torch.nn.utils.clip_grad_norm_(list(w.values()), o["grad_clip"])))
        adamw.step()
    with torch.no_grad():
        r["loss_after"] = loss_of(batches[0])[0].item()
    return r


def write_safetensors(path, tensors):
    """u64 length of the header, the header as JSON padded with spaces to 8 bytes, the data."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, x in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(x.shape), "data_offsets": [offset, offset + x.nbytes]}
        offset += x.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for x in tensors.values():
            assert x.dtype == np.float32
            f.write(np.ascontiguousarray(x).tobytes())


def config_json(kind, c):
    if kind == "gpt2":
        return dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", vocab_size=c["vocab_size"], n_positions=c["context"],
                    n_ctx=c["context"], n_embd=c["channels"], n_layer=c["layers"], n_head=c["heads"], n_inner=None,
                    activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                    layer_norm_epsilon=c["norm_epsilon"], initializer_range=0.02, bos_token_id=0, eos_token_id=0,
                    tie_word_embeddings=True, torch_dtype="float32")
    if kind == "relu2":
        return dict(model_type="train_gpt", **c)
    j = dict(architectures=[kind.capitalize() + "ForCausalLM"], model_type=kind, vocab_size=c["vocab_size"],
             max_position_embeddings=c["context"], hidden_size=c["channels"], intermediate_size=c["hidden"],
             num_hidden_layers=c["layers"], num_attention_heads=c["heads"], num_key_value_heads=c["kv_heads"],
             head_dim=c["head_size"], hidden_act="silu", rms_norm_eps=c["norm_epsilon"], rope_theta=c["rope_theta"],
             rope_scaling=None, attention_bias=False, attention_dropout=0.0, initializer_range=0.02, use_cache=True,
             tie_word_embeddings=c["tied_head"], bos_token_id=0, eos_token_id=0, torch_dtype="float32")
    j.update(dict(mlp_bias=False) if kind == "llama" else dict(use_sliding_window=False, sliding_window=None))
    return j


def compare(exact, single):
    """How far torch's float32 is from its float64: the measured baseline for the tests' tolerances."""
    relative = lambda a, b: max(abs(x - y) / abs(x) for x, y in zip(a, b))
    tensor = lambda a, b: float((a - b.double()).abs().max() / a.abs().max())         # max error over max magnitude
    return dict(loss=relative(exact["losses"][:1], single["losses"][:1]), losses=relative(exact["losses"], single["losses"]),
                loss_after=relative([exact["loss_after"]], [single["loss_after"]]),
                grad_norms=relative(exact["grad_norms"], single["grad_norms"]), logits=tensor(exact["logits"], single["logits"]),
                gradients={n: tensor(g, single["gradients"][n]) for n, g in exact["gradients"].items()})


def make(kind, out, seed):
    c, rng = KINDS[kind], np.random.RandomState(seed)
    weights, batches = random_weights(kind, c, rng), random_batches(c, rng)
    exact, single = (run(kind, c, weights, batches, dtype) for dtype in (torch.float64, torch.float32))
    error = compare(exact, single)
    expected = dict(
        kind=kind, torch=torch.__version__, batch=BATCH, tokens_per_row=TOKENS, optimizer=OPTIMIZER,
        batches=[dict(tokens=x.tolist(), targets=y.tolist()) for x, y in batches],
        loss=exact["losses"][0],                             # batch 0, mean nats per token
        logits=[dict(row=b, position=t, values=exact["logits"][b, t].tolist()) for b, t in LOGIT_POSITIONS],
        losses=exact["losses"],                              # step i on batch i, before its update
        grad_norms=exact["grad_norms"],                      # before clipping
        loss_after=exact["loss_after"],                      # batch 0 after all the updates
        float32_error=error)
    folder = out / kind
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", weights)
    write_safetensors(folder / "gradients.safetensors", {n: g.float().numpy() for n, g in exact["gradients"].items()})
    (folder / "config.json").write_text(json.dumps(config_json(kind, c), indent=2) + "\n")
    lines = (f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in expected.items())
    (folder / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    clipped = sum(norm > OPTIMIZER["grad_clip"] for norm in exact["grad_norms"])
    print(f"{kind}: {sum(x.size for x in weights.values())} parameters, loss {exact['losses'][0]:.6f} -> {exact['loss_after']:.6f}, "
          f"{clipped} of {STEPS} steps clipped; float32 errors: losses {error['losses']:.1e}, "
          f"grad_norms {error['grad_norms']:.1e}, gradients {max(error['gradients'].values()):.1e}")


def read_safetensors(path):
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header.pop("__metadata__")
    return {name: torch.tensor(np.frombuffer(data[start + e["data_offsets"][0]:start + e["data_offsets"][1]], "<f4").reshape(e["shape"]),
                               dtype=torch.float64) for name, e in header.items()}


def check(out):
    """Recomputes batch 0 from the files: with transformers' own classes, and for relu2 with the code above."""
    import transformers
    for kind, c in KINDS.items():
        weights, gradients = (read_safetensors(out / kind / f"{name}.safetensors") for name in ("model", "gradients"))
        expected = json.loads((out / kind / "expected.json").read_text())
        tokens, targets = (torch.tensor(expected["batches"][0][name]) for name in ("tokens", "targets"))
        if kind == "relu2":
            who, w = "this script", {name: p.requires_grad_() for name, p in weights.items()}
            logits = forward(kind, w, c, tokens)
        else:
            model, report = transformers.AutoModelForCausalLM.from_pretrained(out / kind, output_loading_info=True)
            assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
            model = model.double().eval()
            who, w = f"transformers {transformers.__version__} {type(model).__name__}", dict(model.named_parameters())
            logits = model(tokens).logits
        assert w.keys() == gradients.keys() == weights.keys()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        logit_error = max((logits[x["row"], x["position"]].detach() - torch.tensor(x["values"], dtype=torch.float64)).abs().max().item()
                          for x in expected["logits"])
        gradient_error = max(((w[n].grad - g).abs().max() / g.abs().max()).item() for n, g in gradients.items())
        print(f"{kind}: {who} differs by at most: loss {abs(loss.item() - expected['loss']):.1e}, logits {logit_error:.1e}, "
              f"gradients {gradient_error:.1e}")
        assert max(abs(loss.item() - expected["loss"]), logit_error, gradient_error) < 1e-5  # transformers' norms and RoPE are float32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "test/data/reference")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check-transformers", action="store_true", help="only check the files already written, in float64")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.check_transformers:
        return check(a.out)
    for i, kind in enumerate(KINDS):
        make(kind, a.out, a.seed + i)


if __name__ == "__main__":
    main()
