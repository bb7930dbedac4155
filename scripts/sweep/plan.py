"""`sweep plan`: measures the machine, chooses the grid that fills the budget, shows it, writes plan.json."""
import hashlib
import heapq
import os
import re
import shutil
import subprocess
import time

from . import SweepError
from .grid import MOST_EPOCHS, holdout_runs, saved_flops, steps_done_here, with_seeds
from .shapes import duration, short
from .slots import make_slots
from .speed import Speed, measure
from .store import FORMAT, read_json, write_json

EVALUATION_TOKENS = 262144  # evenly spaced over the held-out text
EVALUATION_BATCH = 4096     # tokens a batch of `train_gpt eval`
UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
LEAST_SIZES, LEAST_FACTOR = 5, 10
USED = 0.92  # of a time budget, since machines are shared and the last runs leave cores idle


def parse_budget(text):
    """("seconds", x) of 90s, 30min, 2h, or ("flops", x) of a plain number, e.g. 1e15."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][+]?[0-9]+)?)\s*([a-zA-Z]*)\s*", text)
    if match and match[2] in ("", "FLOP", "FLOPs", "flops", *UNITS):
        try:
            value = float(match[1])
        except ValueError:
            value = 0
        if value > 0:
            return ("seconds", value * UNITS[match[2]]) if match[2] in UNITS else ("flops", value)
    raise SweepError(f"--budget {text}: wanted a time such as 30min or 2h, or FLOPs such as 1e15", 2)


def find_binary(given):
    binary = given or os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "train_gpt")
    found = shutil.which(binary)
    if not found:
        raise SweepError(f"no program at {os.path.normpath(binary)}: build it with make, or name it by --binary", 2)
    return os.path.abspath(found)


def prepare_data(binary, data, directory, val_fraction):
    """Tokenizes a text into the sweep's directory. Returns (path of the shards, dataset.json)."""
    if os.path.isdir(data):
        described = read_json(os.path.join(data, "dataset.json"))
        if not described or not described.get("val", {}).get("tokens"):
            raise SweepError(f"{data} holds no tokens with a held-out part (dataset.json): make them with train_gpt "
                             f"tokenize, or give a text file")
        return os.path.abspath(data), described
    if not os.path.isfile(data):
        raise SweepError(f"no data at {data}: give a text file or a directory of token shards", 2)
    tokens = os.path.join(directory, "tokens")
    described = read_json(os.path.join(tokens, "dataset.json"))
    source = os.stat(data)
    same = described and described["val_fraction"] == val_fraction and described["sources"] == [
        {"bytes": source.st_size, "modified_ns": source.st_mtime_ns, "path": os.path.abspath(data)}]
    if not same:
        done = subprocess.run([binary, "tokenize", os.path.abspath(data), "--tokenizer", "bytes", "--out", tokens,
                               "--val-fraction", str(val_fraction)], capture_output=True, text=True)
        if done.returncode:
            raise SweepError((done.stderr.strip().splitlines() or ["train_gpt tokenize failed"])[-1])
        described = read_json(os.path.join(tokens, "dataset.json"))
    return "tokens", described  # relative to the sweep's directory, which may then be moved


def fingerprint(directory, tokens, described):
    """A hash by which data counts as the same for a run: of the counts, and of the first and last tokens."""
    digest = hashlib.sha256(repr((described["vocabulary"], described["train"], described["val"])).encode())
    path = os.path.join(directory, tokens)
    for name in sorted(os.listdir(path)):
        if name.endswith(".bin"):
            with open(os.path.join(path, name), "rb") as file:
                digest.update(file.read(1 << 20))
                file.seek(max(0, os.path.getsize(file.name) - (1 << 16)))
                digest.update(file.read())
    return digest.hexdigest()[:12]


def finish_seconds(runs, speed, slots, eval_tokens):
    """When the last run ends: the longest first, each on the slot that is free first; a branch once its trunk has its
    checkpoint (here: has ended, unless that is long before)."""
    free = [0.0] * slots
    heapq.heapify(free)
    begun = {}

    def take(run):
        return speed.seconds(run["N"], steps_done_here(run), run["config"]["step_tokens"], eval_tokens)

    for run in sorted(runs, key=lambda r: (r["parent"] is not None, -take(r))):
        start = heapq.heappop(free)
        if run["parent"]:
            at, length, steps = begun[run["parent"]]
            start = max(start, at + length * run["branch_step"] / steps)
        begun[run["name"]] = (start, take(run), run["config"]["steps"])
        heapq.heappush(free, start + take(run))
    return max(free)


def holdout_plan(setting, largest):
    """The test's runs, as far as they are known before the fit: at the expected best size."""
    if not setting["holdout"]:
        return []
    C = setting["holdout"] * largest
    return holdout_runs(setting, C, (C / 6 / setting["ratio"]) ** 0.5, setting["holdout_sizes"])


def cost(setting, speed, largest):
    """(runs, test runs, seconds of each, FLOPs (6 N D) of all) of a grid with this largest budget."""
    runs = with_seeds(setting, largest)
    tests = holdout_plan(setting, largest)
    grid_seconds = finish_seconds(runs, speed, setting["slots"], setting["eval_tokens"]) if runs else 0
    # A single test run has all slots; two threads are worth about 1.7 for it.
    together = 1 if len(tests) > 1 else 1 + 0.7 * (setting["slots"] - 1)
    slots = setting["slots"] if len(tests) > 1 else 1
    test_seconds = finish_seconds(tests, speed, slots, setting["eval_tokens"]) / together if tests else 0
    return runs, tests, grid_seconds, test_seconds, saved_flops(runs)[1] + sum(run["flops"] for run in tests)


def fill(setting, speed, kind, budget):
    """The largest grid that fits the budget, by bisection over its largest run's compute."""
    def spent(largest):
        _, _, grid, test, flops = cost(setting, speed, largest)
        return (grid + test) / USED if kind == "seconds" else flops

    low, high = 1e9, 1e9
    while spent(high) < budget and high < 1e27:
        low, high = high, high * 4
    for _ in range(24):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if spent(middle) <= budget else (low, middle)
    return low


def show(plan, say):
    setting = plan["setting"]
    runs = plan["runs"]
    say(f"data: {short(setting['train_tokens'])} tokens, vocabulary {setting['vocabulary']}, "
        f"context {setting['context']}, batch growing with the tokens' root")
    say(f"{'layers':>7}{'channels':>9}{'params':>9}{'lr':>9}{'batch':>8}   tokens (tokens a parameter)")
    for trunk in [r for r in runs if not r["parent"] and r["kind"] == "grid"]:
        family = sorted((r for r in runs if trunk["name"] in (r["name"], r["parent"])), key=lambda r: r["tokens"])
        cells = "  ".join(f"{short(r['tokens'])} ({r['tokens'] / r['N']:.3g})" for r in family)
        c = trunk["config"]
        say(f"{c['layers']:>7}{c['channels']:>9}{short(trunk['N']):>9}{c['lr']:>9.3g}"
            f"{short(c['step_tokens']):>8}   {cells}")
    if setting["seeds"]:
        say(f"and all of it under {setting['seeds']} more seed{'s' if setting['seeds'] > 1 else ''}")
    alone, shared = saved_flops(runs)
    C = [r["flops"] for r in runs]
    say(f"{len(runs)} runs from {min(C):.3g} to {max(C):.3g} FLOPs (6 N D), a factor {max(C) / min(C):.0f}; "
        f"cool-down branches make {shared:.3g} FLOPs of {alone:.3g}: {100 * (1 - shared / alone):.0f} % saved")
    if setting["holdout"]:
        say(f"held out: {setting['holdout']:g} times the largest, {plan['holdout_flops']:.3g} FLOPs, "
            f"{setting['holdout_sizes']} size{'s' if setting['holdout_sizes'] > 1 else ''} (sweep.py test)")
    epochs = max([r["tokens"] for r in holdout_plan(setting, max(C))] or [0]) / setting["train_tokens"]
    if epochs > MOST_EPOCHS:
        say(f"note: the test reads the text {epochs:.1f} times; beyond {MOST_EPOCHS} a repeated token is worth less "
            f"than a new one (Muennighoff et al. 2023), so expect it to do worse than predicted")
    end = time.strftime("%a %H:%M", time.localtime(time.time() + sum(plan["seconds"].values())))
    say(f"time: {duration(plan['seconds']['grid'])} for the grid on {setting['slots']} "
        + ("GPUs" if setting["gpus"] else "processes")
        + (f", {duration(plan['seconds']['test'])} for the test" if setting["holdout"] else "")
        + f"; begun now it ends at {end}")


def make_setting(arguments, binary, directory):
    tokens, described = prepare_data(binary, arguments.data, directory, arguments.val_fraction)
    gpus = [gpu for gpu in arguments.gpus.split(",") if gpu]
    slots, threads = make_slots(arguments.jobs, gpus, arguments.ranks)
    machine = ["--device", "cuda"] if gpus else ["--device", "cpu"]
    setting = {
        "directory": directory, "data": os.path.abspath(arguments.data), "tokens": tokens,
        "fingerprint": fingerprint(directory, tokens, described), "vocabulary": described["vocabulary"],
        "train_tokens": described["train"]["tokens"], "context": arguments.context, "seed": arguments.seed,
        "dtype": "bf16" if gpus else "fp32", "machine_flags": machine, "gpus": gpus, "slots": len(slots),
        "threads": threads, "ratio": arguments.tokens_per_parameter, "span": arguments.span, "seeds": arguments.repeats,
        "holdout": arguments.holdout, "holdout_sizes": arguments.holdout_sizes,
        "eval_batches": max(1, min(EVALUATION_TOKENS, described["val"]["tokens"]) // EVALUATION_BATCH),
        "eval_tokens": min(EVALUATION_TOKENS, described["val"]["tokens"])}
    if arguments.ranks > 1:
        setting["ranks"] = arguments.ranks
    if (have := described["train"]["tokens"]) < 100 * arguments.context:
        raise SweepError(f"{arguments.data} has only {have} training tokens: too few for a sweep")
    return setting, slots, threads


def command(arguments):
    kind, budget = parse_budget(arguments.budget)
    binary = find_binary(arguments.binary)
    directory = os.path.abspath(arguments.out)
    os.makedirs(directory, exist_ok=True)
    setting, slots, threads = make_setting(arguments, binary, directory)
    setting["budget_flops"] = budget
    print(f"measuring {len(slots)} process{'es' if len(slots) > 1 else ''} side by side, for a few seconds")
    speed = measure(binary, setting, budget if kind == "seconds" else None, slots, threads, print)
    plan = make_plan(setting, speed, kind, budget)
    del setting["directory"]
    if os.path.isdir(os.path.join(directory, "runs")):
        print(f"{directory} has runs already: those that the new plan has too are kept")
    write_json(os.path.join(directory, "plan.json"), plan)
    show(plan, print)
    print(f"next: scripts/sweep.py run --out {arguments.out}")


def too_small(runs):
    """Why no law can come from these runs, or None."""
    shapes = {(r["config"]["layers"], r["config"]["channels"]) for r in runs}
    C = [r["flops"] for r in runs] or [1]
    if len(shapes) >= LEAST_SIZES and max(C) >= LEAST_FACTOR * min(C):
        return None
    return f"{len(shapes)} sizes and a factor {max(C) / min(C):.0f} in compute"


def make_plan(setting, speed, kind, budget):
    largest = fill(setting, speed, kind, budget)
    runs, tests, grid_seconds, test_seconds, flops = cost(setting, speed, largest)
    if few := too_small(runs):
        more = budget
        while more < 100 * budget:
            more *= 1.25
            if not too_small(cost(setting, speed, fill(setting, speed, kind, more))[0]):
                break
        enough = f"{more:.1e}" if kind == "flops" else duration(more)
        raise SweepError(f"the budget is too small: it gives {few}, a law needs {LEAST_SIZES} sizes and a factor "
                         f"{LEAST_FACTOR}; {enough} would do"
                         + (", or a smaller --holdout" if setting["holdout"] else ""))
    C = [r["flops"] for r in runs]
    return {"format": FORMAT, "setting": {k: v for k, v in setting.items() if k != "directory"}, "speed": speed.as_dict(),
            "budget": {kind: budget}, "seconds": {"grid": grid_seconds, "test": test_seconds}, "flops": flops,
            "holdout_flops": setting["holdout"] * max(C), "runs": runs, "tests": []}


def plan_speed(plan):
    return Speed([tuple(p) for p in plan["speed"]["points"]], plan["speed"]["startup"])
