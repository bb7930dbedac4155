#!/usr/bin/env python3
"""A plain PyTorch GPT on a GPU, for comparison with train_gpt: the same shapes, bf16 autocast, flash attention, fused AdamW.

  torch_step.py [--model gpt2|qwen] [--batch 16] [--compile] [--steps 20]     a training step
  torch_step.py --kernels                                                      ceilings, and attention alone
Prints one line for each result; --save FILE writes the results as a JSON list.
"""
import argparse
import json
import statistics

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# layers, heads, key-value heads, channels, head size, hidden channels, vocabulary (padded to a multiple of 64)
SHAPES = {"gpt2": (12, 12, 12, 768, 64, 3072, 50304), "qwen": (24, 14, 2, 896, 64, 4864, 151936)}
TOKENS = 1024


def milliseconds(work, runs):
    """The median time of `work` by the GPU's clock."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))


class RMSNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(nn.Module):
    def __init__(self, shape, is_gpt2):
        super().__init__()
        _, self.heads, self.kv_heads, channels, self.head_size, hidden, _ = shape
        self.is_gpt2 = is_gpt2
        norm = nn.LayerNorm if is_gpt2 else RMSNorm
        self.attention_norm, self.mlp_norm = norm(channels), norm(channels)
        self.qkv = nn.Linear(channels, (self.heads + 2 * self.kv_heads) * self.head_size, bias=is_gpt2)
        self.attention_out = nn.Linear(self.heads * self.head_size, channels, bias=is_gpt2)
        self.mlp_in = nn.Linear(channels, hidden if is_gpt2 else 2 * hidden, bias=is_gpt2)
        self.mlp_out = nn.Linear(hidden, channels, bias=is_gpt2)

    def forward(self, x, cos, sin):
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, tokens, -1, self.head_size).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.kv_heads, self.kv_heads), 1)
        if not self.is_gpt2:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.kv_heads != self.heads)
        x = x + self.attention_out(y.transpose(1, 2).reshape(batch, tokens, -1))
        hidden = self.mlp_in(self.mlp_norm(x))
        if self.is_gpt2:
            return x + self.mlp_out(F.gelu(hidden, approximate="tanh"))
        gate, up = hidden.chunk(2, -1)
        return x + self.mlp_out(F.silu(gate) * up)


class GPT(nn.Module):
    def __init__(self, name):
        super().__init__()
        shape = SHAPES[name]
        layers, _, _, channels, head_size, _, vocabulary = shape
        self.is_gpt2 = name == "gpt2"
        self.tokens = nn.Embedding(vocabulary, channels)
        self.positions = nn.Embedding(TOKENS, channels) if self.is_gpt2 else None
        self.blocks = nn.ModuleList(Block(shape, self.is_gpt2) for _ in range(layers))
        self.norm = nn.LayerNorm(channels) if self.is_gpt2 else RMSNorm(channels)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        frequencies = 1e6 ** (-torch.arange(0, head_size, 2) / head_size)
        angles = torch.arange(TOKENS)[:, None] * frequencies[None]
        self.register_buffer("cos", angles.cos().to(torch.bfloat16), persistent=False)
        self.register_buffer("sin", angles.sin().to(torch.bfloat16), persistent=False)

    def forward(self, ids, targets):
        x = self.tokens(ids)
        if self.is_gpt2:
            x = x + self.positions.weight
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def training_step(name, batch, compiled, steps):
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = GPT(name).cuda()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), fused=True)
    run = torch.compile(model) if compiled else model
    ids = torch.randint(0, 50257, (8, batch, TOKENS + 1), device="cuda")
    count = 0

    def step():
        nonlocal count
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = run(ids[count % 8, :, :-1], ids[count % 8, :, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        count += 1

    for _ in range(5):
        step()
    ms = milliseconds(step, steps)
    return {"what": f"{name}, batch {batch} x {TOKENS}, {'torch.compile' if compiled else 'eager'}", "ms": ms,
            "tokens_per_second": batch * TOKENS / ms * 1e3, "memory_gib": torch.cuda.max_memory_allocated() / 2**30}


def attention(backend, batch, heads, kv_heads, tokens, head_size):
    q = torch.randn(batch, heads, tokens, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(batch, kv_heads, tokens, head_size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for _ in range(2))
    flops = 2 * batch * heads * tokens * tokens * head_size  # both products over half of the scores
    with sdpa_kernel([backend]):
        forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        out = forward()
        gradient = torch.randn_like(out)
        backward = lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True)
        for _ in range(3):
            forward(), backward()
        ms_forward, ms_backward = milliseconds(forward, 20), milliseconds(backward, 20)
    return {"what": f"attention by {backend.name}, {batch} x {heads}/{kv_heads} x {tokens} x {head_size}",
            "forward_us": ms_forward * 1e3, "forward_tflops": flops / ms_forward * 1e-9,
            "backward_us": ms_backward * 1e3, "backward_tflops": 2.5 * flops / ms_backward * 1e-9}


def kernels():
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    ms = milliseconds(lambda: a @ b, 20)
    yield {"what": f"product {n} x {n} x {n}, random", "ms": ms, "tflops": 2 * n**3 / ms * 1e-9}
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    ms = milliseconds(lambda: y.copy_(x), 10)
    yield {"what": "copy of 1 GiB", "ms": ms, "gbs": 2 * 2**30 / ms * 1e-6}
    for shape in ((16, 12, 12, 1024, 64), (64, 12, 12, 1024, 64), (16, 14, 2, 1024, 64), (16, 16, 16, 1024, 128),
                  (4, 16, 16, 4096, 128)):
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            try:
                yield attention(backend, *shape)
            except RuntimeError as error:
                yield {"what": f"attention by {backend.name}, {shape}", "error": str(error).split("\n")[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="gpt2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--save")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("torch_step: PyTorch finds no GPU here")
    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    work = kernels() if options.kernels else [training_step(options.model, options.batch, options.compile, options.steps)]
    results = []
    for result in work:
        results.append(result)
        print(json.dumps(result), flush=True)
        if options.save:
            with open(options.save, "w") as file:
                json.dump(results, file)


main()
