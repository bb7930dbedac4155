#!/usr/bin/env python3
"""Does a training step take the same time and memory per token at every context? All ops but attention must.

    scripts/linear_in_context.py [MODEL] [--contexts 256,512,1024,2048,4096] [--tokens 4096] [--threads 1] [--steps 5]
                                 [--tolerance 0.25] [bench's other flags]

Runs `./train_gpt bench MODEL --format json` with several contexts T at the same number of tokens a step, and prints a Markdown
table: for each class of ops the time per token, for attention also its FLOPs per token and their rate, and the memory. The
exit status is 1 when the time per token of the other ops, or the memory of the activations, differs by more than the
tolerance, or when attention's FLOPs are not in proportion to T + 1.
"""
import argparse
import json
import subprocess
import sys

CLASSES = {
    "attention": lambda op: op in ("attention", "attention_backward"),
    "products": lambda op: op.startswith("linear") or op == "head_loss",
    "parameters": lambda op: op in ("adamw", "gradient_norm", "step_guard", "muon_momentum", "muon_apply", "combine"),
    "other": lambda op: True,
}


def measure(arguments, rest, context):
    command = ["./train_gpt", "bench", *([arguments.model] if arguments.model else []), "--context", str(context),
               "--batch", str(arguments.tokens // context), "--threads", str(arguments.threads), "--steps", str(arguments.steps),
               "--format", "json", *rest]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return json.loads(done.stdout)


def per_token(result, arguments):
    """Microseconds per token for each class of ops, and attention's FLOPs per token."""
    times, flops = dict.fromkeys(CLASSES, 0.0), 0.0
    for op in result["ops"]:
        name = next(name for name, holds in CLASSES.items() if holds(op["name"]))
        times[name] += op["ms"] * 1e3 / arguments.tokens
        if name == "attention":
            flops += op["gflops"] * op["ms"] * 1e6 / arguments.tokens
    return times, flops


def spread(values):
    """The largest distance of a value from the median, relative to the median."""
    middle = sorted(values)[len(values) // 2]
    return max(abs(v - middle) / middle for v in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Other flags are handed to bench.")
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--contexts", default="256,512,1024,2048,4096")
    parser.add_argument("--tokens", type=int, default=4096, help="in a step: a multiple of each context")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.25, help="of times; memory: a tenth of it")
    arguments, rest = parser.parse_known_args()
    try:
        contexts = [int(word) for word in arguments.contexts.split(",")]
    except ValueError:
        parser.error(f"--contexts {arguments.contexts}: numbers with commas between them")
    if any(t <= 0 or arguments.tokens % t for t in contexts):
        parser.error(f"--tokens {arguments.tokens} is not a multiple of each of --contexts {arguments.contexts}")

    rows = []
    for context in contexts:
        result = measure(arguments, rest, context)
        if not rows:
            print(f"{result['model']}, {arguments.tokens} tokens a step, {result['threads']} threads; microseconds per token\n")
            print("| T | batch | products | attention | per parameter | other ops | step | attention kFLOP per token | GFLOP/s "
                  "| activations MiB | parameters and optimizer MiB |")
            print("|---:" * 11 + "|")
        times, flops = per_token(result, arguments)
        memory = result["memory_bytes"]
        rows.append((context, times, flops, memory["transient"]))
        print(f"| {context} | {arguments.tokens // context} | {times['products']:.2f} | {times['attention']:.2f} "
              f"| {times['parameters']:.2f} | {times['other']:.2f} | {result['step']['ms'] * 1e3 / arguments.tokens:.2f} "
              f"| {flops / 1e3:.0f} | {flops / times['attention'] / 1e3:.1f} | {memory['transient'] / 2**20:.1f} "
              f"| {memory['persistent'] / 2**20:.1f} |", flush=True)

    problems = []
    for name in ("products", "other"):
        if (far := spread([times[name] for _, times, _, _ in rows])) > arguments.tolerance:
            problems.append(f"time per token of {name}: {far:.0%} from the middle")
    if (far := spread([bytes for *_, bytes in rows])) > arguments.tolerance / 10:
        problems.append(f"memory of the activations: {far:.1%} from the middle")
    if (far := spread([flops / (context + 1) for context, _, flops, _ in rows])) > 1e-3:
        problems.append(f"attention's FLOPs: {far:.1%} from the proportion to T + 1")
    if problems:
        sys.exit("linear_in_context: " + "; ".join(problems))


if __name__ == "__main__":
    main()
