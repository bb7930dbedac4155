#!/usr/bin/env python3
"""Evidence for the default recipe of `train_gpt train`: short runs, one after another, and a table of them.

  scripts/recipe.py transfer FILE.txt     is the best learning rate the same at 8 times the width and 4 times the depth?
  scripts/recipe.py neighbours FILE.txt   the default of three sizes against the values beside it
  scripts/recipe.py ablation FILE.txt     what each ingredient gives: the loss without it, steps and time to a fixed loss

Finished runs are kept in --out and not made again, so an interrupted call can be continued. Only Python's standard library is needed.
Flags behind `--` go to every run (-- --threads 1).
"""
import argparse
import json
import math
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEP = math.sqrt(2)


class Failure(Exception):
    pass


class Runs:
    def __init__(self, arguments):
        self.binary, self.data, self.out, self.more = arguments.binary, arguments.data, arguments.out, arguments.more
        os.makedirs(self.out, exist_ok=True)
        # Runs on another text, or with other flags, have other names.
        name = os.path.splitext(os.path.basename(self.data))[0]
        self.prefix = "-".join([name, *self.more]).replace("/", "_").replace(" ", "_")

    def log(self, name, flags):
        """The lines of the run's log; the run is made now unless its log is there."""
        path = os.path.join(self.out, f"{self.prefix}-{name}")
        kept = path + ".jsonl"
        if not os.path.exists(kept):
            shutil.rmtree(path, ignore_errors=True)
            command = [self.binary, "train", "--data", self.data, "--out", path, "--save-every", "0", "--sample-every", "0",
                       *map(str, flags), *self.more]
            done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise Failure(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1:]}")
            os.replace(os.path.join(path, "log.jsonl"), kept)
            shutil.rmtree(path)
        with open(kept) as file:
            return [json.loads(line) for line in file]

    def loss(self, name, flags):
        """The loss on all held-out text after the last step; infinite where it is not a number."""
        loss = self.log(name, flags)[-1].get("val_loss")
        return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def explained(binary, flags):
    """The values that the binary chooses by its rules, for a run with these flags."""
    text = subprocess.run([binary, "train", "--explain", *map(str, flags)], check=True, capture_output=True, text=True).stdout
    return {line.split()[0]: line.split()[1] for line in text.splitlines()}


def table(header, rows):
    cells = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    for row in cells:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    sys.stdout.flush()


def number(value):
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def lowest(points):
    """The x at which the parabola y = a + b x + c x^2 nearest to {x: y} is lowest, within the range of x."""
    center = sum(points) / len(points)
    xs, ys = [x - center for x in points], list(points.values())
    if not all(map(math.isfinite, ys)):
        return min(points, key=points.get)
    # x is symmetric about 0, so the normal equations decouple: b follows from x, c from x^2 less its mean.
    square = sum(x * x for x in xs) / len(xs)
    b = sum(x * y for x, y in zip(xs, ys)) / sum(x * x for x in xs)
    c = sum((x * x - square) * y for x, y in zip(xs, ys)) / sum((x * x - square) ** 2 for x in xs)
    if c <= 0:
        return min(points, key=points.get)
    return center + max(min(xs), min(max(xs), -b / (2 * c)))


def transfer(runs, arguments):
    """Rates a factor sqrt(2) apart, two on either side of the lowest loss; the best rate is where the parabola nearest to
    these five is lowest. Losses are means over four seeds, for the smallest models over eight."""
    shapes = [("width", 32, 4), ("width", 64, 4), ("width", 128, 4), ("width", 256, 4),
              ("depth", 64, 2), ("depth", 64, 4), ("depth", 64, 8)]
    for optimizer in arguments.optimizers.split(","):
        base = float(explained(runs.binary, ["tiny", "--batch", 8, "--optimizer", optimizer, "--steps", arguments.steps])["lr"])
        results = {}

        def measure(shape, k):
            _, channels, layers = shape
            losses = []
            for seed in range(1, 1 + max(4, 256 // channels)):
                flags = ["--channels", channels, "--layers", layers, "--head-size", 16, "--hidden", 11 * channels // 4,
                         "--context", 64, "--batch", 8, "--steps", arguments.steps, "--val-fraction", 0.03, "--lr",
                         base * STEP ** k, "--optimizer", optimizer, "--parametrization", arguments.parametrization,
                         "--eval-every", arguments.steps, "--seed", seed]
                losses.append(runs.loss(f"transfer-{arguments.parametrization}-{optimizer}-{channels}x{layers}-"
                                        f"{arguments.steps}-{k}" + (f"-seed{seed}" if seed > 1 else ""), flags))
            results.setdefault(shape, {})[k] = sum(losses) / len(losses)

        def best(shape):
            return min(results[shape], key=results[shape].get)

        def vertex(shape):
            return lowest({k: v for k, v in results[shape].items() if abs(k - best(shape)) <= 2})

        for shape in shapes:
            measure(shape, 0)
            while missing := [k for k in range(best(shape) - 2, best(shape) + 3) if k not in results[shape]]:
                measure(shape, min(missing, key=abs))
        ks = sorted({k for row in results.values() for k in row})
        print(f"\n{optimizer}, {arguments.parametrization}, {arguments.steps} steps of 512 tokens: held-out loss by learning "
              f"rate ({base:g} x)\n")
        rows = []
        for shape in shapes:
            row = [f"{shape[1]} channels, {shape[2]} layers"]
            for k in ks:
                text = number(results[shape][k]) if k in results[shape] else ""
                row.append(f"**{text}**" if k == best(shape) else text)
            rows.append([*row, f"{STEP ** vertex(shape):.2f}"])
        table(["model"] + [f"{STEP ** k:.3g}" for k in ks] + ["best"], rows)
        print()
        for what in ("width", "depth"):
            found = [vertex(shape) for shape in shapes if shape[0] == what]
            print(f"{what}: the best learning rate moves by {max(found) - min(found):.1f} steps of sqrt(2)")


def neighbours(runs, arguments):
    """The default and the runs that differ from it in one value, by a factor."""
    sizes = {"nano": ["nano", "--batch", 12], "tiny": ["tiny", "--batch", 12],
             "depth 5": ["--depth", 5, "--context", 64, "--batch", 12]}
    rows = []
    for size, flags in sizes.items():
        flags = [*flags, "--steps", arguments.steps, "--eval-every", arguments.steps]
        rules = explained(runs.binary, [*flags, "--data", runs.data])
        name = f"neighbours-{size.replace(' ', '-')}-{arguments.steps}"
        default = runs.loss(name, flags)
        row = [f"{size}: {rules['parameters']}", number(default)]
        for flag, factor in arguments.factors:
            if flag == "steps-a-window":  # beta2 as 1 - 1 / window
                value = 1 - (1 - float(rules["beta2"])) / factor
                changed = ["--beta2", value]
            elif flag == "warmup":
                changed = ["--warmup", round(int(rules["warmup"]) * factor)]
            elif flag == "batch":  # the same number of tokens in fewer or more steps
                batch = round(12 * factor)
                steps = round(arguments.steps * 12 / batch)
                changed = ["--batch", batch, "--steps", steps, "--eval-every", steps]
            else:
                changed = [f"--{flag}", float(rules[flag]) * factor]
            given = [f for f in flags]
            for i in range(0, len(changed), 2):
                if changed[i] in given:
                    at = given.index(changed[i])
                    del given[at:at + 2]
            loss = runs.loss(f"{name}-{flag}-{factor:.3g}", [*given, *changed])
            row.append(f"{loss - default:+.4f}")
        rows.append(row)
        print(size, file=sys.stderr)
    print(f"\n{arguments.steps} steps; the default's held-out loss, and how much more it is with one value multiplied\n")
    table(["model", "default"] + [f"{flag} x {factor:.3g}" for flag, factor in arguments.factors], rows)


def ablation(runs, arguments):
    """The recipe without each ingredient; a run has passed the loss `until` when the mean of its last three evaluations is lower."""
    every = max(1, arguments.steps // 40)
    flags = ["tiny", "--batch", 12, "--steps", arguments.steps, "--eval-every", every, "--eval-batches", 16]
    variants = {
        "default": [],
        "AdamW instead of Muon": ["--optimizer", "adamw"],
        "projections drawn": ["--no-zero-projections"],
        "tied head": ["--tied-head", "on"],
        "no QK-norm": ["--qk-norm", "off"],
        "relu2 instead of swiglu": ["--activation", "relu2"],
        "cosine instead of linear": ["--schedule", "cosine"],
        "constant instead of linear": ["--schedule", "constant"],
        "no weight decay": ["--weight-decay", 0],
        "GPT-2's architecture": ["--architecture", "gpt2"],
        "GPT-2's with AdamW": ["--architecture", "gpt2", "--optimizer", "adamw", "--no-zero-projections"],
    }
    rows = []
    for name, changed in variants.items():
        log = runs.log(f"ablation-{arguments.steps}-{name.replace(' ', '_')}", [*flags, *changed])
        seconds, recent, reached = 0, [], None
        for line in log:
            seconds += line["ms"] / 1e3
            if "val_loss" in line:
                recent = [*recent, line["val_loss"]][-3:]
                if reached is None and line["val_loss"] <= arguments.until:
                    reached = line["step"], seconds
        rows.append([name, number(log[-1]["val_loss"]), *(reached and (reached[0], f"{reached[1]:.1f} s") or ("never", "")),
                     f"{seconds:.0f} s"])
        print(name, file=sys.stderr)
    print(f"\n{arguments.steps} steps of 12 x 64 tokens: held-out loss, and when it is {arguments.until} or less\n")
    table(["recipe", "loss", f"steps to {arguments.until}", f"time to {arguments.until}", "whole run"], rows)


def factors(text):
    """lr:1.41,lr:0.707 -> [("lr", 1.41), ("lr", 0.707)]"""
    try:
        return [(pair.split(":")[0], float(pair.split(":")[1])) for pair in text.split(",")]
    except (IndexError, ValueError):
        raise argparse.ArgumentTypeError(f"not FLAG:FACTOR,FLAG:FACTOR...: {text}") from None


def main():
    given, more = sys.argv[1:], []
    if "--" in given:
        given, more = given[:given.index("--")], given[given.index("--") + 1:]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("transfer", "neighbours", "ablation"))
    parser.add_argument("data", help="a text")
    parser.add_argument("--binary", default=os.path.join(ROOT, "train_gpt"))
    parser.add_argument("--out", default="runs/recipe", help="where runs are kept (runs/recipe)")
    parser.add_argument("--steps", type=int, help="of each run (transfer: 200, neighbours: 500, ablation: 1000)")
    parser.add_argument("--until", type=float, default=1.88, help="the loss of which ablation tells the time (1.88)")
    parser.add_argument("--optimizers", default="muon,adamw", help="of transfer (muon,adamw)")
    parser.add_argument("--parametrization", default="completep", help="of transfer (completep)")
    parser.add_argument("--factors", type=factors, help="of neighbours: FLAG:FACTOR,...",
                        default="lr:1.414,lr:0.707,weight-decay:2,weight-decay:0.5,steps-a-window:4,warmup:3,batch:2,batch:0.5")
    arguments = parser.parse_args(given)
    arguments.more = more
    arguments.steps = arguments.steps or {"transfer": 200, "neighbours": 500, "ablation": 1000}[arguments.what]
    try:
        globals()[arguments.what](Runs(arguments), arguments)
    except (Failure, OSError, subprocess.CalledProcessError) as error:
        print(f"recipe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
