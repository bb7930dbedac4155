#!/usr/bin/env python3
"""Fits the numbers of a machine's description, which no data sheet has, to measured step times of layouts.

    scripts/fit_hardware.py data/hardware/h100-sxm.json layouts.csv --every 10 --out data/hardware/h100-sxm.json

Every N-th row that was measured (from the --first on) is calibrated on; `train_gpt plan --validate` tells how well the rest is
predicted. The model of time is the program's own: each trial runs it. Errors are those of logarithms, weighted as Cauchy's
distribution has them, since some rows of published tables are many times slower than their neighbours for reasons that
they do not name; a pull holds numbers, of which the rows say little, near where they began: at what data sheets and
other measurements make likely. Standard library alone.
"""
import argparse
import concurrent.futures
import csv
import json
import math
import os
import subprocess
import sys
import tempfile

NUMBERS = ("product_efficiency product_depth attention_efficiency attention_depth logit_ps shared_logit_ps bandwidth_gbs kernel_us launch_us micro_step_ms step_ms inside_gbs "
           "between_gbs reduce_gbs inside_latency_us between_latency_us reduce_latency_us exchange_host_us beside_messages_us hidden hidden_zero stall_ms").split()
SHARES = ("product_efficiency", "attention_efficiency", "hidden", "hidden_zero")  # at most 1


def calibration_rows(path, every, first):
    """The text of a table with every N-th measured row."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for row in rows if row["status"] == "ok"][first::every]
    return kept


def solve(matrix, right):
    """Gauss elimination with pivots."""
    n = len(right)
    rows = [list(matrix[i]) + [right[i]] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(i + 1, n):
            factor = rows[r][i] / rows[i][i]
            for c in range(i, n + 1):
                rows[r][c] -= factor * rows[i][c]
    x = [0.0] * n
    for i in reversed(range(n)):
        x[i] = (rows[i][n] - sum(rows[i][c] * x[c] for c in range(i + 1, n))) / rows[i][i]
    return x


class Fit:
    def __init__(self, arguments, folder):
        self.program = arguments.program
        self.folder = folder
        self.scale, self.pull = arguments.scale, arguments.pull
        with open(arguments.start, encoding="utf-8") as file:
            self.description = json.load(file)
        begin = {**self.description, **self.description.get("published", {})}
        self.names = [n for n in arguments.numbers if begin.get(n, 0) > 0]
        self.start = [math.log(begin[n]) for n in self.names]
        self.tables = []
        for i, path in enumerate(arguments.tables):
            rows = calibration_rows(path, arguments.every, arguments.first)
            table = os.path.join(folder, f"table{i}.csv")
            with open(table, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
            self.tables.append(table)

    def described(self, point):
        """The description with these numbers as the published program's."""
        numbers = {n: float(f"{math.exp(v):.4g}") for n, v in zip(self.names, point)}
        return {**self.description, "published": {**self.description.get("published", {}), **numbers}}

    def residuals(self, point):
        """Logarithms of predicted by measured, of all calibration rows."""
        handle, path = tempfile.mkstemp(suffix=".json", dir=self.folder)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(self.described(point), file)
        found = []
        for table in self.tables:
            command = [self.program, "plan", "--validate", table, "--hardware", path, "--rows", "--format", "json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr.strip())
            found += [math.log(r["predicted_ms"] / r["measured_ms"]) for r in json.loads(done.stdout)["each"] if "predicted_ms" in r]
        os.remove(path)
        return found

    def cost(self, point, residuals):
        return sum(math.log1p((r / self.scale) ** 2) for r in residuals) * self.scale**2 + sum(
            (self.pull * (p - s)) ** 2 for p, s in zip(point, self.start))

    def run(self, rounds, workers):
        point, step, damping = list(self.start), 0.02, 1e-2
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            residuals = self.residuals(point)
            best = self.cost(point, residuals)
            for turn in range(rounds):
                moved = [point[:i] + [point[i] + step] + point[i + 1:] for i in range(len(point))]
                slopes = [[(a - b) / step for a, b in zip(m, residuals)] for m in pool.map(self.residuals, moved)]
                weights = [1 / (1 + (r / self.scale) ** 2) for r in residuals]
                n = len(point)
                matrix = [[sum(w * a * b for w, a, b in zip(weights, slopes[i], slopes[j])) for j in range(n)]
                          for i in range(n)]
                right = [-sum(w * a * r for w, a, r in zip(weights, slopes[i], residuals)) -
                         self.pull**2 * (point[i] - self.start[i]) for i in range(n)]
                for i in range(n):
                    matrix[i][i] += self.pull**2
                before = best
                for _ in range(6):
                    damped = [[matrix[i][j] + (damping if i == j else 0) for j in range(n)] for i in range(n)]
                    change = [max(-0.7, min(0.7, c)) for c in solve(damped, right)]
                    trial = [min(p + c, 0.0) if name in SHARES else p + c
                             for name, p, c in zip(self.names, point, change)]
                    found = self.residuals(trial)
                    if (cost := self.cost(trial, found)) < best:
                        point, residuals, best, damping = trial, found, cost, damping / 4
                        break
                    damping *= 6
                error = sum(abs(math.expm1(r)) for r in residuals) / len(residuals)
                print(f"round {turn + 1}: cost {best:.5f}, mean error {100 * error:.2f} %", file=sys.stderr)
                if before - best < 1e-4 * best:
                    break
        return point


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="the description to begin with")
    parser.add_argument("tables", nargs="+", help="CSV files as `plan --validate` reads them")
    parser.add_argument("--every", type=int, default=10, help="calibrate on every N-th measured row (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="from this one on (%(default)s)")
    parser.add_argument("--numbers", nargs="+", default=NUMBERS, help="which are fitted (those above 0)")
    parser.add_argument("--scale", type=float, default=0.05, help="errors beyond this weigh less (%(default)s)")
    parser.add_argument("--pull", type=float, default=0.15,
                        help="of a number's logarithm towards where it began (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--program", default="./train_gpt")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fit = Fit(arguments, folder)
        described = fit.described(fit.run(arguments.rounds, arguments.workers))
    with open(arguments.out, "w", encoding="utf-8") as file:
        json.dump(described, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
