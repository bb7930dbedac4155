#!/usr/bin/env python3
"""Figures for gpu_measure.sh from the files that its steps made.

  gpu_figures.py losses DIR      compares DIR/NAME-cuda.jsonl with DIR/NAME-cpu.jsonl, step by step
  gpu_figures.py profile CSV     a line for each kernel on Nsight Compute's raw page
  gpu_figures.py report OUT      Markdown of all that is found in OUT/made
"""
import csv
import glob
import json
import os
import statistics
import sys

# The largest relative difference of a loss that rounding explains, after a few steps at a low learning rate.
BOUNDS = {"fp32": 1e-4, "bf16": 5e-3, "fp8": 2e-2}


def lines_of(path):
    with open(path) as file:
        for line in file:
            try:
                yield json.loads(line)
            except ValueError:
                pass


def losses(directory):
    worst = []
    for path in sorted(glob.glob(f"{directory}/*-cuda.jsonl")):
        name = os.path.basename(path)[: -len("-cuda.jsonl")]
        on_gpu, on_cpu = ([(j["loss"], j["grad_norm"]) for j in lines_of(p) if "loss" in j]
                          for p in (path, path.replace("-cuda.", "-cpu.")))
        if not on_gpu or len(on_gpu) != len(on_cpu):
            print(f"FAILED {name}: {len(on_gpu)} steps on the GPU, {len(on_cpu)} on the CPU")
            worst.append(False)
            continue
        loss, norm = (max(abs(a[i] - b[i]) / abs(b[i]) for a, b in zip(on_gpu, on_cpu)) for i in (0, 1))
        bound = BOUNDS[name.rsplit("-", 1)[1]]
        worst.append(loss <= bound)
        print(f"{'' if loss <= bound else 'FAILED '}{name}: {len(on_gpu)} steps, loss {on_gpu[0][0]:.4f} to {on_gpu[-1][0]:.4f}; "
              f"relative to the CPU: loss {loss:.1e} (at most {bound:g}), norm {norm:.1e}")
    return bool(worst) and all(worst)


def profile(path):
    with open(path) as file:
        rows = [r for r in csv.DictReader(file) if r.get("ID", "").isdigit()]

    def value(row, start):
        return next((row[key] for key in row if key.startswith(start) and row[key] not in ("", "n/a")), "-")

    for row in rows:
        stalls = sorted(((float(v.replace(",", "")), key.split("issue_stalled_")[1].split("_per")[0])
                         for key, v in row.items()
                         if "issue_stalled_" in key and "not_issued" not in key and "per_warp_active" not in key
                         and v.replace(",", "").replace(".", "").isdigit()), reverse=True)[:2]
        print(f"{value(row, 'Kernel Name')[:70]:70s} {value(row, 'gpu__time_duration.sum'):>9s} us, SM "
              f"{value(row, 'sm__throughput.avg.pct'):.5s} %, memory {value(row, 'gpu__dram_throughput.avg.pct'):.5s} %, occupancy "
              f"{value(row, 'sm__warps_active.avg.pct'):.5s} %, registers {value(row, 'launch__registers_per_thread')}, blocks "
              f"{value(row, 'launch__grid_size')}; waits: {', '.join(f'{name} {v:.1f}' for v, name in stalls)}")
    return bool(rows)


def report(out):
    def json_of(name):
        try:
            with open(f"{out}/made/{name}.json") as file:
                return json.load(file)
        except (OSError, ValueError):
            return None

    for name, tokens in (("train", "16 x 1024"), ("train_accumulated", "16 x (32 x 1024)")):
        try:
            rows = [j for j in lines_of(f"{out}/made/{name}.jsonl") if "ms" in j]
            rows = rows[len(rows) // 2:]
            print(f"- gpt2-124M, `train`, {tokens} tokens a step: {statistics.median(r['ms'] for r in rows):.2f} ms, "
                  f"{statistics.median(r['tokens_per_second'] for r in rows):.0f} tokens/s")
        except (OSError, KeyError, statistics.StatisticsError):
            pass
    for name in ("bench", "bench_qwen", "bench_fp8", "bench_muon"):
        j = json_of(name)
        if not j:
            continue
        step, peak = j["step"], j["ceilings"]
        print(f"- {name} ({j['model']}, {j['dtype']}, {j['optimizer']}): {step['ms']:.2f} ms a step = {step['tokens_per_second']:.0f} tokens/s, ops one by "
              f"one {step['ops_ms']:.2f}, floor {step['floor_ms']:.2f}; peak {peak['gflops'] / 1e3:.0f} TFLOP/s, copy {peak['copy_gbs']:.0f} GB/s")
    for name in ("torch", "torch_qwen", "torch_kernels"):
        for result in json_of(name) or []:
            print("- PyTorch: " + ", ".join(f"{v if isinstance(v, str) else f'{v:.1f}'}{'' if k == 'what' else ' ' + k}"
                                             for k, v in result.items()))
    for name in ("losses_compared", "profile"):
        try:
            with open(f"{out}/logs/{name}.log") as file:
                print("\n" + "".join(f"    {line}" for line in file), end="")
        except OSError:
            pass
    try:
        with open(f"{out}/logs/tests.log") as file:
            print("\n" + "".join(f"    {line}" for line in file if "ERROR" in line or "test cases" in line), end="")
    except OSError:
        pass
    j = json_of("bench")
    if j:
        print("\n| op | calls | ms | floor ms | TFLOP/s | GB/s |\n| --- | ---: | ---: | ---: | ---: | ---: |")
        for op in j["ops"]:
            print(f"| {op['name']} | {op['calls']} | {op['ms']:.3f} | {op['floor_ms']:.3f} | {op['gflops'] / 1e3:.1f} | {op['gbs']:.0f} |")
    return True


def main():
    modes = {"losses": losses, "profile": profile, "report": report}
    if len(sys.argv) != 3 or sys.argv[1] not in modes:
        raise SystemExit(__doc__)
    if not modes[sys.argv[1]](sys.argv[2]):
        sys.exit(1)


main()
