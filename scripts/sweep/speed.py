"""How fast this machine trains: short runs of the binary itself, as many side by side as the sweep will have."""
import json
import math
import os
import subprocess
import tempfile
import time

import numpy as np

from . import SweepError
from .shapes import OPTIMIZER, duration, flags, micro_batch, shape_for

PROBE_SECONDS = 1.0


class Speed:
    """Seconds a token for each size, between measured sizes by interpolation in logarithms."""

    def __init__(self, points, startup):
        self.points = sorted(points)  # (N, seconds a token of one process)
        self.startup = startup        # seconds of a process before its first step

    def seconds(self, N, tokens, eval_tokens):
        """Of one run: its start, its tokens, an evaluation (a forward pass costs a third) in a process of its own."""
        return 2 * self.startup + self.token_seconds(N) * (tokens + eval_tokens / 3)

    def token_seconds(self, N):
        n, t = np.log([p[0] for p in self.points]), np.log([p[1] for p in self.points])
        x = math.log(N)
        if x > n[-1]:  # beyond the largest, time is proportional to FLOPs
            return math.exp(t[-1] + x - n[-1])
        return math.exp(np.interp(x, n, t))

    def as_dict(self):
        return {"points": self.points, "startup": self.startup}


def command(binary, setting, shape, steps, out, threads):
    context = setting["context"]
    given = flags(data=setting["tokens"], out=out, context=context, batch=micro_batch(context), steps=steps,
                  eval_every=0, save_every=0, sample_every=0, optimizer=OPTIMIZER, threads=threads or None)
    return [binary, "train", *shape.flags(), *given, *setting["machine_flags"]]


def probe(binary, setting, shape, steps, slots, threads):
    """(seconds a token, seconds before the first step) with one process in each slot."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        begin = time.monotonic()
        processes = [slot.start(command(binary, setting, shape, steps, os.path.join(directory, str(i)), threads),
                                setting["directory"], os.path.join(directory, f"{i}.txt"))
                     for i, slot in enumerate(slots)]
        try:
            statuses = [process.wait(timeout=600) for process in processes]
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            for process in processes:
                process.kill()
            raise
        wall = time.monotonic() - begin
        if any(statuses):
            with open(os.path.join(directory, f"{statuses.index(next(filter(None, statuses)))}.txt")) as file:
                lines = file.read().strip().splitlines()
            raise SweepError(f"the speed cannot be measured: {lines[-1] if lines else 'train_gpt failed'}")
        per_step, total = [], []
        for i in range(len(slots)):
            with open(os.path.join(directory, str(i), "log.jsonl")) as file:
                ms = [json.loads(line)["ms"] for line in file]
            total.append(sum(ms) / 1e3)
            # The mean, not the median: on a shared machine a pause belongs to what a run will take.
            per_step.append(np.mean(ms[min(2, len(ms) - 1):]) / 1e3)
    tokens = micro_batch(setting["context"]) * setting["context"]
    return float(np.mean(per_step)) / tokens, max(0.05, wall - max(total))


def measure(binary, setting, budget_seconds, slots, threads, say):
    """A Speed from a few sizes. Each probe is cut to about a second of steps."""
    points, startups = [], []
    budget_flops = budget_seconds * 5e10 * len(slots) * threads if budget_seconds else setting["budget_flops"]
    middle = math.sqrt(budget_flops / 13 / 6 / setting["ratio"])
    begin = time.monotonic()
    shapes = {shape_for(max(15e3, middle * factor), setting["vocabulary"]) for factor in (1 / 20, 1 / 4, 1, 4)}
    for shape in sorted(shapes, key=lambda s: s.matrices):
        N = shape.parameters(setting["vocabulary"])
        guess = points[-1][1] * N / points[-1][0] if points else N * 1.2e-10
        steps = int(min(60, max(4, PROBE_SECONDS / (guess * 1024))))
        seconds, startup = probe(binary, setting, shape, steps, slots, threads)
        points.append((N, seconds))
        startups.append(startup)
        say(f"  {shape.layers} layers, {shape.channels} channels: {1 / seconds:,.0f} tokens/s a process, "
            f"{6 * N / seconds / 1e9:.0f} GFLOP/s")
        if time.monotonic() - begin > 60:
            break
    say(f"  measured in {duration(time.monotonic() - begin)}")
    return Speed(points, float(np.median(startups)))
