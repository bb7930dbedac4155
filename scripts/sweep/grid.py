"""Which runs a sweep makes: sizes around the expected optimum, several D for each size from one trunk, and what they cost.

A WSD run is constant in its learning rate until the last fifth (Hu et al. 2024, sec. 4). So the run of K steps IS the
first 4/5 K steps of any longer one, plus its own K/5 steps of cool-down: from a trunk every shorter K costs only
a fifth, and has bit for bit the weights of a run of its own.
"""
import hashlib
import json
import math

from .shapes import OPTIMIZER, Shape, micro_batch, rates, shape_for, short, step_tokens, warmup_steps
from .store import FORMAT

WINDOW = 4               # sizes from 1/4 to 4 times the expected best one at each budget
SIZE_STEP = 2
FAMILY = 3               # lengths a trunk has, a factor 4: its one learning rate is within sqrt(2) of each run's own
MIN_STEPS = 200          # shorter runs are mostly warm-up: no law holds for them
MOST_EPOCHS = 4          # beyond, a repeated token is worth less than a new one (Muennighoff et al. 2023, fig. 5)


def configuration(shape, setting, steps, step, warmup, chosen, seed):
    """All that determines the results of a run. Its hash is part of the name of the run's directory."""
    return {"format": FORMAT, "data": setting["fingerprint"], "layers": shape.layers, "channels": shape.channels,
            "heads": shape.heads, "context": setting["context"], "batch": micro_batch(step, setting["context"]),
            "step_tokens": step, "steps": steps, "warmup": warmup, "optimizer": OPTIMIZER, **chosen, "seed": seed,
            "dtype": setting["dtype"], **({"ranks": setting["ranks"]} if "ranks" in setting else {})}


def make_run(shape, setting, steps, step, warmup, chosen, seed, kind, save_every, parent=None):
    config = configuration(shape, setting, steps, step, warmup, chosen, seed)
    key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
    N, tokens = shape.parameters(setting["vocabulary"]), steps * step
    name = f"{short(N)}-{short(tokens)}" + (f"-seed{seed}" if seed != setting["seed"] else "") + f"-{key}"
    start = steps - max(1, steps // 5)  # of the cool-down, as llm/train/schedule.cpp has it
    return {"name": name, "kind": kind, "config": config, "save_every": save_every, "parent": parent,
            "branch_step": start if parent else 0, "N": N, "N_body": shape.body, "tokens": tokens,
            "flops": 6 * N * tokens,
            "flops_counted": shape.flops_per_token(setting["vocabulary"], setting["context"]) * tokens}


def shape_of(run):
    return Shape(run["config"]["layers"], run["config"]["channels"])


def steps_done_here(run):
    """The steps that this run makes itself: a branch does not make its trunk's."""
    return run["config"]["steps"] - run["branch_step"]


def save_interval(needed, steps):
    """Steps between checkpoints: a divisor of `needed`, where branches begin, and about a tenth of the run or less."""
    return next(needed // k for k in range(1, needed + 1) if needed % k == 0 and needed // k <= max(10, steps // 10))


def trunk_runs(shape, setting, token_counts, seed=None):
    """The trunk (the longest) and its branches. Token counts ascend, each twice the one before."""
    seed = setting["seed"] if seed is None else seed
    kind = "grid" if seed == setting["seed"] else "repeat"
    step = step_tokens(math.sqrt(token_counts[0] * token_counts[-1]), setting["context"])
    # A multiple of five, so that the cool-down begins at exactly 4/5; doubling keeps it one.
    first = 5 * max(1, round(token_counts[0] / step / 5))
    lengths = [first * 2**i for i in range(len(token_counts))]
    # The runs of a family share their beginning: the warm-up of the shortest run, the rate of the middle one, and the
    # decay of the longest. (For the longest run, weights that average too few updates cost a percent, and all runs at a
    # grid's largest budget are the longest of their family.)
    warmup = warmup_steps(first)
    middle = rates(math.sqrt(lengths[0] * lengths[-1]), step, lengths[-1])
    save_every = save_interval(first * 4 // 5, lengths[-1])
    trunk = make_run(shape, setting, lengths[-1], step, warmup, middle, seed, kind, save_every)
    branches = [make_run(shape, setting, steps, step, warmup, middle, seed, kind, save_every, trunk["name"])
                for steps in lengths[:-1]]
    return [trunk, *branches]


def lay_out(setting, largest, seed):
    """The runs of a grid whose largest budget is `largest` FLOPs (6 N D) and whose smallest is about largest / span."""
    vocabulary, ratio, span = setting["vocabulary"], setting["ratio"], setting["span"]
    levels = [largest / 2**j for j in range(int(math.log2(span) + 1e-9), -1, -1)]

    def best_size(C):
        return math.sqrt(C / 6 / ratio)

    low, high = best_size(levels[0]) / WINDOW, best_size(levels[-1]) * WINDOW
    count = int(math.log(high / low) / math.log(SIZE_STEP)) + 1
    offset = math.sqrt(high / low / SIZE_STEP ** (count - 1))
    runs, seen = [], set()
    for i in range(count):
        shape = shape_for(low * offset * SIZE_STEP**i, vocabulary)
        N = shape.parameters(vocabulary)
        if shape in seen or N < low / SIZE_STEP:
            continue
        seen.add(shape)
        tokens = [C / 6 / N for C in levels if 1 / WINDOW <= N / best_size(C) <= WINDOW]
        tokens = [D for D in tokens if D / step_tokens(D, setting["context"]) >= MIN_STEPS
                  and D <= MOST_EPOCHS * setting["train_tokens"]]
        for end in range(len(tokens), 0, -FAMILY):
            runs += trunk_runs(shape, setting, tokens[max(0, end - FAMILY):end], seed)
    return runs


def with_seeds(setting, largest):
    """The grid under each of its seeds. Nearly all of the scatter about a law is between seeds, so every run is repeated: a
    prediction far beyond the runs is only as good as their means."""
    seeds = range(setting["seed"], setting["seed"] + 1 + setting["seeds"])
    return [run for seed in seeds for run in lay_out(setting, largest, seed)]


def holdout_runs(setting, C, best_N, count):
    """Runs of C FLOPs that no fit has seen: the predicted best size, and sizes below and above it."""
    factors = {1: [1], 2: [0.5, 1], 3: [0.5, 1, 2]}[count]
    runs = []
    for factor in factors:
        shape = shape_for(best_N * factor, setting["vocabulary"])
        tokens = C / 6 / shape.parameters(setting["vocabulary"])
        step = step_tokens(tokens, setting["context"])
        steps = 5 * max(1, round(tokens / step / 5))
        own = rates(steps, step)
        run = make_run(shape, setting, steps, step, warmup_steps(steps), own, setting["seed"], "holdout",
                       max(1, steps // 20))
        if run["name"] not in [r["name"] for r in runs]:
            runs.append(run)
    return runs


def saved_flops(runs):
    """FLOPs (6 N D) of all runs: each made from the start, and with shared trunks."""
    alone = sum(run["flops"] for run in runs)
    shared = sum(run["flops"] * steps_done_here(run) / run["config"]["steps"] for run in runs)
    return alone, shared
