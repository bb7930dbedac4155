"""How fast this machine trains: short runs of the binary itself, as many side by side as the sweep will have."""
import json
import math
import os
import subprocess
import tempfile
import time

import numpy as np

from . import SweepError
from .shapes import OPTIMIZER, duration, flags, shape_for, shared_batch, usual_batch

PROBE_SECONDS = 1.0


class Speed:
    """Seconds a token and, for the optimizer, a step of each size, between measured sizes by interpolation in logarithms."""

    def __init__(self, points, startup):
        self.points = sorted(points)  # (N, seconds a token of one process, seconds a step beside its tokens')
        self.startup = startup        # seconds of a process before its first step

    def seconds(self, N, steps, step_tokens, eval_tokens):
        """Seconds of one run: its start, its steps, and an evaluation in a process of its own (a forward pass costs a third)."""
        of_token, of_step = self.at(N, 1), self.at(N, 2)
        return 2 * self.startup + steps * (of_token * step_tokens + of_step) + of_token * eval_tokens / 3

    def at(self, N, what):
        n, t = np.log([p[0] for p in self.points]), np.log([p[what] for p in self.points])
        x = math.log(N)
        if x > n[-1]:  # beyond the largest, time is proportional to FLOPs
            return math.exp(t[-1] + x - n[-1])
        return math.exp(np.interp(x, n, t))

    def as_dict(self):
        return {"points": self.points, "startup": self.startup}


def command(binary, setting, shape, batch, steps, out, threads):
    ranks, batch = shared_batch(setting.get("ranks", 1), batch, setting["context"])
    given = flags(data=setting["tokens"], out=out, context=setting["context"], batch=batch, steps=steps,
                  ranks=ranks if ranks > 1 else None,
                  eval_every=0, save_every=0, sample_every=0, optimizer=OPTIMIZER, threads=threads or None)
    return [binary, "train", *shape.flags(), *given, *setting["machine_flags"]]


def probe(binary, setting, shape, batch, steps, slots, threads):
    """(seconds a step, seconds before the first step) with one process in each slot."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as directory:
        begin = time.monotonic()
        processes = [slot.start(command(binary, setting, shape, batch, steps, os.path.join(directory, str(i)), threads),
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
            # The mean, not the median: on a shared machine pauses are part of the time that a run takes.
            per_step.append(np.mean(ms[min(2, len(ms) - 1):]) / 1e3)
    return float(np.mean(per_step)), max(0.05, wall - max(total))


def measure(binary, setting, budget_seconds, slots, threads, say):
    """A Speed from a few sizes, each with two batch sizes: a step costs its tokens and the optimizer, and Muon costs as much as
    a few hundred tokens. Each probe is cut to about a second of steps."""
    points, startups = [], []
    budget_flops = budget_seconds * 5e10 * len(slots) * threads if budget_seconds else setting["budget_flops"]
    context, usual = setting["context"], usual_batch(setting["context"])
    part = max(1, usual // 4)
    middle = math.sqrt(budget_flops / 13 / 6 / setting["ratio"])
    begin = time.monotonic()
    shapes = {shape_for(max(15e3, middle * factor), setting["vocabulary"]) for factor in (1 / 20, 1 / 4, 1, 4)}
    for shape in sorted(shapes, key=lambda s: s.matrices):
        N = shape.parameters(setting["vocabulary"])
        guess = points[-1][1] * N / points[-1][0] if points else N * 1.2e-10
        steps = int(min(60, max(4, PROBE_SECONDS / (guess * usual * context))))
        whole, startup = probe(binary, setting, shape, usual, steps, slots, threads)
        startups.append(startup)
        tokens, of_token, of_step = usual * context, whole / (usual * context), 1e-9
        if part < usual:
            less, _ = probe(binary, setting, shape, part, 2 * steps, slots, threads)
            slope = (whole - less) / ((usual - part) * context)
            of_token = min(max(slope, 0.1 * of_token), of_token)
            of_step = max(of_step, whole - of_token * tokens)
        points.append((N, of_token, of_step))
        say(f"  {shape.layers} layers, {shape.channels} channels: {tokens / whole:,.0f} tokens/s a process, "
            f"{6 * N * tokens / whole / 1e9:.0f} GFLOP/s; a step costs as much as {of_step / of_token:.0f} tokens beside its own")
        if time.monotonic() - begin > 60:
            break
    say(f"  measured in {duration(time.monotonic() - begin)}")
    return Speed(points, float(np.median(startups)))
