#!/usr/bin/env python3
"""Tests of scripts/sweep.py: test/test_sweep.py [-v] [TestCase.test]

They train models of 20,000 parameters with the binary (TRAIN_GPT_BINARY, or the one in the repository) for a minute.
TRAIN_GPT_SHARED names a folder with data/scaling/chinchilla_svg_extracted_data.csv; without it that check is left out.
"""
import csv
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(os.path.dirname(HERE), "scripts")
if not importlib.util.find_spec("scipy") and sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])  # Debian's packages belong to Debian's Python
sys.path.insert(0, SCRIPTS)

import numpy as np  # noqa: E402

from sweep import SweepError, ask, fit, grid, law, shapes, store, table  # noqa: E402
from sweep import plan as planning  # noqa: E402
from sweep.refined import RefinedLaw, RefinedProblem, refine  # noqa: E402
from sweep.speed import Speed  # noqa: E402

BINARY = os.environ.get("TRAIN_GPT_BINARY") or os.path.join(os.path.dirname(HERE), "train_gpt")
SHARED = os.environ.get("TRAIN_GPT_SHARED")
TRUE = law.Law(1.7, 400.0, 900.0, 0.34, 0.31)


def sweep(*arguments, **options):
    command = [sys.executable, os.path.join(SCRIPTS, "sweep.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def grid_points(noise=0.0, seed=0, sizes=8, budgets=8):
    """Sizes round the optimum of each budget, as an IsoFLOP experiment has them."""
    N, D = [], []
    for C in np.geomspace(1e17, 1e20, budgets):
        best = TRUE.optimum(C)[0]
        for n in best * np.geomspace(0.2, 5, sizes):
            N.append(n)
            D.append(C / 6 / n)
    N, D = np.array(N), np.array(D)
    return N, D, TRUE.loss(N, D) * np.exp(np.random.default_rng(seed).normal(0, noise, len(N)) if noise else 0)


class Folder(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="sweep-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, header, rows, name="table.csv"):
        with open(self.path(name), "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return self.path(name)


class Fit(Folder):
    def test_an_exact_law_is_found(self):
        N, D, L = grid_points()
        found, objective, _ = law.fit(N, D, L)
        self.assertLess(objective, 1e-20)
        for name in law.NAMES:
            self.assertAlmostEqual(getattr(found, name) / getattr(TRUE, name), 1, delta=1e-6, msg=name)

    def test_derivatives_are_those_of_the_objective(self):
        N, D, L = grid_points(0.01)
        problem = law.Problem(N, D, L, 5e-3)
        theta = problem.theta(TRUE)[None] + 0.01
        weights = np.random.default_rng(1).integers(0, 3, (1, len(N))).astype(float)
        gradient, hessian, _ = problem.derivatives(theta, weights)
        for i in range(5):
            step = np.zeros((1, 5))
            step[0, i] = 1e-6
            slope = (problem.objective(theta + step, weights) - problem.objective(theta - step, weights)) / 2e-6
            self.assertAlmostEqual(slope[0], gradient[0, i], delta=1e-6 * max(1, abs(gradient[0, i])))
            after, before = (problem.derivatives(theta + s, weights)[0] for s in (step, -step))
            np.testing.assert_allclose((after - before)[0] / 2e-6, hessian[0, i], rtol=1e-4, atol=1e-4)

    def test_intervals_hold_the_truth_and_stray_runs_do_not_matter(self):
        N, D, L = grid_points(0.003, seed=3)
        sides = fit.approaches(table.Table(N, D, L))
        L[5] *= 1.3
        result = fit.analyse(table.Table(N, D, L), samples=200)
        self.assertEqual(result.reasons, [])
        for name in ("alpha", "beta", "E"):
            low, high = law.interval(getattr(result.laws, name), 0.999)
            self.assertTrue(low <= getattr(TRUE, name) <= high, f"{name}: {low} to {high}")
        for name in ("1", "2"):
            self.assertAlmostEqual(sides[name]["a"], TRUE.a, delta=0.06, msg=f"approach {name}")
        self.assertEqual(len(sides["2"]["points"]), 8)

    def test_repeated_seeds_give_the_noise(self):
        N, D, L = (np.concatenate([x] * 4) for x in grid_points())
        L = L * np.exp(np.random.default_rng(0).normal(0, 0.004, len(L)))
        self.assertAlmostEqual(fit.seed_noise(table.Table(N, D, L)), 0.004, delta=0.0005)

    def test_anybodys_columns(self):
        N, D, L = grid_points()
        C = 6 * N * D
        for header, columns in ((("N", "D", "loss"), (N, D, L)), (("Training FLOP", "Model Size", "loss"), (C, N, L)),
                                (("run", "tokens", "val_loss", "params"), (["a"] * len(N), D, L, N)),
                                (("flops", "tokens", "loss"), (C, D, L))):
            read = table.read_table(self.write(header, zip(*columns)))
            np.testing.assert_allclose(read.N, N)
            np.testing.assert_allclose(read.D, D)
            np.testing.assert_allclose(read.C, C)
        odd = self.write(("width", "size in millions", "tokens", "final"), zip(N, [f"{n / 1e6}M" for n in N], D, L))
        np.testing.assert_allclose(table.read_table(odd, ["N=size in millions", "loss=final"]).N, N)

    def test_the_command_line(self):
        N, D, L = grid_points(0.002)
        path = self.write(("N", "D", "loss"), zip(N, D, L))
        done = sweep("fit", path, "--drop-highest", "2", "--bootstrap", "50", "--format", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        values = json.loads(done.stdout)
        self.assertEqual(values["runs"], len(N) - 2)
        for key in ("E", "A", "B", "alpha", "beta", "objective", "a", "intervals"):
            self.assertIn(key, values)
        self.assertAlmostEqual(values["a"], TRUE.a, delta=0.05)
        self.assertIn("approach 2", sweep("fit", path, "--bootstrap", "20").stdout)

    @unittest.skipUnless(SHARED, "TRAIN_GPT_SHARED is not set")
    def test_the_chinchilla_runs(self):
        path = os.path.join(SHARED, "data", "scaling", "chinchilla_svg_extracted_data.csv")
        runs = table.read_table(path).drop_highest(5)
        self.assertEqual(len(runs), 240)
        begin = time.monotonic()
        found, objective, problem = law.fit(runs.N, runs.D, runs.loss)
        self.assertAlmostEqual(objective, 1.018274018e-3, delta=1e-9)
        for name, value in (("E", 1.817218), ("alpha", 0.347310), ("beta", 0.367172)):
            self.assertAlmostEqual(getattr(found, name), value, delta=1e-5)
        laws = law.bootstrap(problem, found, 1000)
        print(f"\nChinchilla: fit and 1,000 bootstrap samples in {time.monotonic() - begin:.1f} s", file=sys.stderr)
        for name, error in (("A", 124.52), ("B", 1293.28), ("E", 0.0257), ("alpha", 0.0154), ("beta", 0.0206)):
            self.assertAlmostEqual(np.std(getattr(laws, name)) / error, 1, delta=0.1, msg=name)
        for delta, objective in ((1e-2, 4.696225e-3),):
            self.assertAlmostEqual(law.fit(runs.N, runs.D, runs.loss, delta)[1], objective, delta=1e-9)


class Refined(unittest.TestCase):
    TRUTH = RefinedLaw(1.0, 20, 40, 0.36, 0.34, 1.4, 0.02)

    def points(self, truth, noise, seed=0):
        """Six budgets, seven sizes round the best of each, two seeds, shapes that miss the usual aspect by up to 1.6."""
        rng = np.random.default_rng(seed)
        N = np.concatenate([truth.optimum(C)[0] * np.geomspace(0.25, 4, 7) for C in np.geomspace(1e12, 3.2e13, 6)] * 2)
        C = np.repeat(np.geomspace(1e12, 3.2e13, 6), 7)
        D = np.concatenate([C, C]) / 6 / N
        aspect = np.exp(rng.uniform(-0.5, 0.5, len(N)))
        L = truth.loss(N, D, aspect) * np.exp(rng.normal(0, noise, len(N)))
        return table.Table(N, D, L, None, {"aspect": list(aspect)})

    def plain(self, points, delta):
        return law.fit(points.N, points.D, points.loss, delta)[0]

    def test_an_exact_law_is_found(self):
        points = self.points(self.TRUTH, 0)
        found, _, _ = refine(points, self.plain(points, 1e-3), 1e-3, 2)
        for name, value in self.TRUTH.as_dict().items():
            self.assertAlmostEqual(found.as_dict()[name] / value, 1, delta=1e-3, msg=name)

    def test_derivatives_are_those_of_the_residuals(self):
        points = self.points(self.TRUTH, 0.01)
        problem = RefinedProblem(points.N, points.D, points.loss, np.array(points.extra["aspect"]), 1e-3)
        theta = problem.theta(self.TRUTH)[None] + 0.02
        _, J = problem.residuals(theta)
        for i in range(7):
            step = np.zeros((1, 7))
            step[0, i] = 1e-6
            slope = (problem.residuals(theta - step)[0] - problem.residuals(theta + step)[0]) / 2e-6
            np.testing.assert_allclose(J[..., i], slope, rtol=1e-6, atol=1e-8)

    def test_the_best_size_is_the_best(self):
        for truth in (self.TRUTH, RefinedLaw.of(TRUE)):
            N, D = truth.optimum(1e15)
            self.assertAlmostEqual(6 * N * D / 1e15, 1)
            for factor in (0.99, 1.01):
                self.assertGreater(truth.loss(N * factor, D / factor), truth.loss(N, D))

    def test_it_takes_runs_that_ask_for_it(self):
        """Beyond the grid the sum of two terms misses by a percent what the refinement knows; runs of the sum do not get one."""
        points = self.points(self.TRUTH, 0.003)
        result = fit.analyse(points, 4e-3, 100)
        self.assertGreater(result.gain, 10)
        low, high = law.interval(result.predictors.kappa)
        self.assertTrue(1 < low < self.TRUTH.kappa < high, f"{low} to {high}")
        N, D = self.TRUTH.optimum(8 * points.C.max())
        truth = self.TRUTH.loss(N, D)
        self.assertLess(abs(result.predictor.loss(N, D) / truth - 1), 0.004)
        self.assertGreater(result.law.loss(N, D) / truth - 1, 0.004)
        points = self.points(RefinedLaw(0.9, 30, 120, 0.35, 0.36), 0.003)
        result = fit.analyse(points, 4e-3, 100)
        self.assertIsNone(result.gain)
        self.assertEqual(float(result.predictor.loss(1e6, 1e7, 2.0)), float(result.law.loss(1e6, 1e7)))


class Refusals(Folder):
    def refused(self, N, D, L):
        with self.assertRaises(SweepError) as caught:
            result = fit.analyse(table.Table(N, D, L), samples=200)
            if result.reasons:
                raise SweepError("; ".join(result.reasons))
        return str(caught.exception)

    def test_grids_that_cannot_bear_exponents(self):
        N, D, L = grid_points()
        self.assertIn("too few points", self.refused(N[:7], D[:7], L[:7]))
        self.assertIn("model sizes", self.refused(np.repeat(N[:3], 4), np.tile(D[:4], 3), np.tile(L[:4], 3)))
        one = slice(0, 16)
        self.assertIn("factor", self.refused(N[one], D[one], L[one]))
        n = np.geomspace(1e6, 1e9, 12)
        self.assertIn("together", self.refused(n, 20 * n, TRUE.loss(n, 20 * n)))

    def test_an_optimum_beyond_all_sizes(self):
        N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e6, 1e7, 6), np.geomspace(1e10, 3e11, 6)))
        self.assertIn("optimum at the edge", self.refused(N, D, TRUE.loss(N, D)))

    def test_noise_that_hides_the_law(self):
        self.assertIn("too wide", self.refused(*grid_points(0.2, sizes=4, budgets=4)))

    def test_a_loss_without_a_law(self):
        N, D, L = grid_points()
        self.assertRegex(self.refused(N, D, TRUE.loss(1e7, D)), "depends on N|too wide")

    def test_status_and_one_line(self):
        good = [*zip(*grid_points())]
        for rows, header, status, words in (
                (good[:5], ("N", "D", "loss"), 1, "too few points"),
                ([("x", 1, 2)], ("N", "D", "loss"), 1, "not a positive"),
                (good, ("N", "D", "colour"), 1, "wanted columns"), ([], ("N", "D", "loss"), 1, "no runs"),
                ([(1, 2)], ("N", "D", "loss"), 1, "not a positive number")):
            done = sweep("fit", self.write(header, rows))
            self.assertEqual((done.returncode, done.stderr.count("\n")), (status, 1), done.stderr)
            self.assertIn(words, done.stderr)
        with open(self.path("binary.csv"), "wb") as file:
            file.write(bytes(range(256)))
        self.assertEqual(sweep("fit", self.path("binary.csv")).returncode, 1)
        self.assertEqual(sweep("fit", self.path("absent.csv")).returncode, 1)
        self.assertEqual(sweep("fit", self.write(("N", "D", "loss"), good), "--column", "Q=N").returncode, 2)
        for wrong in (["fit"], ["fit", "x", "--delta", "nan"], ["ask", "--compute", "-1"], ["nothing"],
                      ["plan", "--data", "x", "--budget", "1h", "--holdout", "-1"]):
            done = sweep(*wrong)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
        self.assertEqual(sweep("ask", "--out", self.folder).returncode, 2)
        self.assertEqual(sweep("run", "--out", self.folder).returncode, 1)
        self.assertEqual(sweep("plan", "--data", "x", "--budget", "soon", "--out", self.folder).returncode, 2)


SETTING = {"data": "text.txt", "tokens": "tokens", "fingerprint": "0", "vocabulary": 257, "train_tokens": 19_000_000,
           "context": 128, "seed": 1, "dtype": "fp32", "machine_flags": ["--device", "cpu"], "gpus": [], "slots": 2,
           "threads": 1, "ratio": 20, "span": 64, "seeds": 2, "holdout": 8, "holdout_sizes": 3, "eval_batches": 64,
           "eval_tokens": 262144}
SPEED = Speed([(2e4, 8e-6, 1e-3), (3e5, 4e-5, 1e-2), (1e6, 1.2e-4, 5e-2)], 0.3)


class Plan(Folder):
    def test_budgets(self):
        for text, meaning in (("30min", ("seconds", 1800)), ("2h", ("seconds", 7200)), ("90s", ("seconds", 90)),
                              ("1e15", ("flops", 1e15)), ("1.5e15", ("flops", 1.5e15))):
            self.assertEqual(planning.parse_budget(text), meaning)
        for text in ("", "min", "-3h", "0", "3 weeks", "1.2.3h"):
            self.assertRaises(SweepError, planning.parse_budget, text)

    def test_the_grid(self):
        plan = planning.make_plan(SETTING, SPEED, "seconds", 7200)
        runs = plan["runs"]
        self.assertGreaterEqual(len({r["N"] for r in runs}), 5)
        self.assertGreaterEqual(max(r["flops"] for r in runs) / min(r["flops"] for r in runs), 30)
        self.assertLessEqual(sum(plan["seconds"].values()), 7200)
        self.assertGreater(sum(plan["seconds"].values()), 0.7 * 7200)
        self.assertEqual(len({r["name"] for r in runs}), len(runs))
        seeds = {}
        for run in runs:
            seeds.setdefault((run["N"], run["tokens"]), set()).add(run["config"]["seed"])
        self.assertTrue(all(of_run == {1, 2, 3} for of_run in seeds.values()))
        self.assertEqual(runs, planning.make_plan(SETTING, SPEED, "seconds", 7200)["runs"])
        by_name = {r["name"]: r for r in runs}
        for run in runs:
            steps = run["config"]["steps"]
            self.assertEqual(run["tokens"], steps * run["config"]["step_tokens"])
            self.assertLessEqual(run["tokens"], 4 * SETTING["train_tokens"] * 1.1)
            if run["parent"]:
                trunk = by_name[run["parent"]]
                # The cool-down of a WSD schedule begins after 4/5 of the steps, where the trunk has a checkpoint.
                self.assertEqual(5 * run["branch_step"], 4 * steps)
                self.assertEqual(run["branch_step"] % trunk["save_every"], 0)
                self.assertLess(run["branch_step"], 4 * trunk["config"]["steps"] // 5)
                self.assertLess(run["config"]["warmup"], run["branch_step"])
                same = {"layers", "channels", "heads", "context", "batch", "step_tokens", "warmup", "optimizer", "lr",
                        "weight_decay", "beta2", "seed", "data"}
                self.assertTrue(all(run["config"][k] == trunk["config"][k] for k in same))
        alone, shared = grid.saved_flops(runs)
        self.assertLess(shared, 0.8 * alone)

    def test_flops_budget_and_too_small_ones(self):
        plan = planning.make_plan(SETTING, SPEED, "flops", 1e15)
        self.assertLessEqual(plan["flops"], 1e15)
        self.assertGreater(plan["flops"], 0.8e15)
        with self.assertRaisesRegex(SweepError, "too small.*would do"):
            planning.make_plan(SETTING, SPEED, "seconds", 20)

    def test_rules_are_the_binarys(self):
        self.assertEqual((shapes.step_tokens(16e6, 128), shapes.step_tokens(64e6, 128)), (1024, 2048))
        self.assertEqual([shapes.step_tokens(D, 128) for D in (1e3, 1e6, 25e6, 40e6)], [128, 256, 1280, 1664])
        self.assertEqual([shapes.micro_batch(step, 128) for step in (128, 256, 1664, 2048, 3072)], [1, 2, 13, 8, 8])
        for wanted in (3e4, 1e6, 1.2e8, 8e9):
            self.assertAlmostEqual(np.log(shapes.shape_for(wanted, 257).parameters(257) / wanted), 0, delta=0.4)

    @unittest.skipUnless(os.path.exists(BINARY), "no train_gpt")
    def test_rates_are_the_binarys(self):
        shape = shapes.shape_for(3e5, 257)
        for steps, batch in ((150, 8), (700, 8), (20000, 16), (3000, 4)):
            command = [BINARY, "train", "--explain", *shape.flags(), "--context", "128", "--batch", str(batch),
                       "--steps", str(steps), "--schedule", "wsd"]
            lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
            said = {line.split()[0]: line.split()[1] for line in lines}
            expected = shapes.rates(steps, 128 * batch)
            self.assertEqual(said["optimizer"], shapes.OPTIMIZER)
            self.assertEqual(said["warmup"], str(shapes.warmup_steps(steps)))
            for name, value in (("lr", "lr"), ("weight-decay", "weight_decay"), ("beta2", "beta2")):
                self.assertAlmostEqual(float(said[name]) / expected[value], 1, delta=0.006, msg=name)

    @unittest.skipUnless(os.path.exists(BINARY), "no train_gpt")
    def test_shapes_are_counted_as_the_binary_counts(self):
        for wanted in (8e3, 3e4, 7e4, 3e5, 2e6, 3e7):
            shape = shapes.shape_for(wanted, 257)
            command = [BINARY, "graph", "--parameters", *shape.flags()]
            out = subprocess.run(command, capture_output=True, text=True).stdout
            self.assertEqual(int(out.splitlines()[-1].split()[0]), shape.parameters(257), shape)

    def test_prediction_of_a_synthetic_sweep(self):
        plan = planning.make_plan(SETTING, SPEED, "seconds", 7200)
        truth, rng = law.Law(0.9, 30, 120, 0.35, 0.36), np.random.default_rng(0)

        def finish(runs):
            for run in runs:
                path = store.run_path(self.folder, run)
                os.makedirs(path, exist_ok=True)
                loss = float(truth.loss(run["N"], run["tokens"]) * np.exp(rng.normal(0, 0.002)))
                store.write_json(os.path.join(path, "result.json"), {"loss": loss, "seconds": 1.0})

        store.write_json(self.path("plan.json"), plan)
        finish(plan["runs"])
        prediction = ask.predict(self.folder, plan)
        self.assertIsNone(ask.outcome(self.folder, prediction))
        finish(prediction["runs"])
        done = sweep("test", "--out", self.folder, "--binary", sys.executable)  # all results are there: nothing is run
        self.assertEqual(done.returncode, 0, done.stderr)
        for row in ask.outcome(self.folder, prediction)["runs"]:
            self.assertLess(abs(row["error"]), 0.01)
        best = truth.optimum(prediction["compute"])[0]
        self.assertAlmostEqual(np.log(prediction["best_params"] / best), 0, delta=0.3)
        answer = json.loads(sweep("ask", "--compute", "1e16", "--out", self.folder, "--format", "json").stdout)
        low, high = answer["loss_interval"]
        self.assertTrue(low < answer["loss"] < high)
        self.assertIn("train_gpt train --data", answer["command"])
        done = sweep("report", "--out", self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("index.html", "report.json", "runs.csv", "isoflop.png", "isoflop.svg", "frontier.png"):
            self.assertTrue(os.path.getsize(self.path("report", name)), name)
        with open(self.path("report", "index.html")) as file:
            page = file.read()
        self.assertNotIn("src=\"http", page)
        self.assertIn("predicted", page)


@unittest.skipUnless(os.path.exists(BINARY), "no train_gpt")
class Run(Folder):
    def make(self, name="sweep", trunks=2):
        """A sweep of tiny runs: two sizes, three token counts each, one repeated seed."""
        directory = self.path(name)
        os.makedirs(directory)
        text = self.path("text.txt")
        if not os.path.exists(text):
            rng = random.Random(0)
            words = ["".join(rng.choice("abcdefghij") for _ in range(rng.randint(2, 7))) for _ in range(200)]
            with open(text, "w") as file:
                file.write(" ".join(rng.choice(words) for _ in range(60000)))
        tokens, described = planning.prepare_data(BINARY, text, directory, 0.1)
        setting = {**SETTING, "tokens": tokens, "fingerprint": planning.fingerprint(directory, tokens, described),
                   "train_tokens": described["train"]["tokens"], "context": 64, "slots": min(2, os.cpu_count()),
                   "eval_batches": 2, "eval_tokens": 8192, "holdout": 2, "holdout_sizes": 1}
        runs = []
        for layers in range(1, trunks + 1):
            runs += grid.trunk_runs(shapes.Shape(layers, 32), setting, [20480, 40960, 81920])
        runs += grid.trunk_runs(shapes.Shape(1, 32), setting, [20480], seed=2)
        plan = {"format": store.FORMAT, "setting": setting, "speed": SPEED.as_dict(), "budget": {"flops": 1.0},
                "seconds": {"grid": 10, "test": 1}, "flops": 1.0, "holdout_flops": 3e10, "runs": runs, "tests": []}
        store.write_json(os.path.join(directory, "plan.json"), plan)
        return directory, plan

    def run_sweep(self, directory, command="run"):
        return sweep(command, "--out", directory, "--binary", BINARY, timeout=300)

    def table(self, directory):
        with open(os.path.join(directory, "table.csv")) as file:
            return file.read()

    def test_a_sweep_from_plan_to_table(self):
        directory, plan = self.make()
        done = self.run_sweep(directory)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = list(csv.DictReader(io.StringIO(self.table(directory))))
        self.assertEqual(len(rows), len(plan["runs"]))
        for trunk in (1, 2):
            family = sorted((int(r["tokens"]), float(r["loss"])) for r in rows
                            if int(r["layers"]) == trunk and r["seed"] == "1")
            self.assertEqual([loss for _, loss in family], sorted((loss for _, loss in family), reverse=True))
        before = {name: os.stat(self.path("sweep", "runs", name, "log.jsonl")).st_mtime_ns
                  for name in os.listdir(self.path("sweep", "runs"))}
        again = self.run_sweep(directory)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("finished already", again.stderr)
        for name, changed in before.items():
            self.assertEqual(os.stat(self.path("sweep", "runs", name, "log.jsonl")).st_mtime_ns, changed)

        # A branch has the very loss of a run of its own.
        branch = next(r for r in plan["runs"] if r["parent"])
        loss = store.result_of(directory, branch)["loss"]
        shutil.rmtree(store.run_path(directory, branch))
        shutil.rmtree(os.path.join(directory, "runs", branch["parent"], "checkpoints"))
        self.assertEqual(self.run_sweep(directory).returncode, 0)
        with open(os.path.join(store.run_path(directory, branch), "log.jsonl")) as file:
            self.assertEqual(json.loads(file.readline())["step"], 1)
        self.assertEqual(store.result_of(directory, branch)["loss"], loss)

        # The held-out run: predicted, run, compared.
        runs = grid.holdout_runs(plan["setting"], 2e10, 3e4, 1)
        store.write_json(os.path.join(directory, "prediction.json"),
                         {"planned": [r["name"] for r in plan["runs"]], "compute": 2e10, "fitted_up_to": 1e10,
                          "law": {}, "best_params": 3e4, "runs": runs,
                          "best_params_interval": [2e4, 4e4],
                          "losses": {r["name"]: {"loss": 2.0, "interval": [1.9, 2.1]} for r in runs}})
        done = self.run_sweep(directory, "test")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("measured", done.stdout)
        self.assertIn("holdout", self.table(directory))

    def test_a_failed_run_does_not_stop_the_rest(self):
        directory, plan = self.make()
        bad = next(r for r in plan["runs"] if r["kind"] == "repeat")
        bad["config"]["heads"] = 5
        store.write_json(os.path.join(directory, "plan.json"), plan)
        done = self.run_sweep(directory)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{bad['name']} failed: train_gpt: ", done.stderr)
        self.assertIn("1 of 7 runs failed", done.stderr.splitlines()[-1])
        self.assertEqual(self.table(directory).count("\n"), 7)  # the header and six runs

    def test_two_sweeps_keep_out_of_each_others_way(self):
        directory, _ = self.make()
        lock = store.Lock(os.path.join(directory, "lock"))
        self.assertTrue(lock.take())
        done = self.run_sweep(directory)
        lock.close()
        self.assertEqual(done.returncode, 1)
        self.assertIn("another sweep", done.stderr)

    def test_a_plan_of_another_version_is_refused(self):
        directory, plan = self.make()
        store.write_json(os.path.join(directory, "plan.json"), {**plan, "format": store.FORMAT - 1})
        done = self.run_sweep(directory)
        self.assertEqual(done.returncode, 1)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertIn("plan again", done.stderr)

    def test_an_interrupted_sweep_says_how_to_go_on(self):
        directory, _ = self.make(trunks=1)
        process = self.start(directory)
        self.wait_for_training(directory, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 1)
        self.assertIn("goes on", errors.splitlines()[-1])
        self.assertEqual(self.run_sweep(directory).returncode, 0)

    def start(self, directory):
        command = [sys.executable, os.path.join(SCRIPTS, "sweep.py"), "run", "--out", directory, "--binary", BINARY]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    def wait_for_training(self, directory, process):
        while process.poll() is None and not children(process.pid):
            time.sleep(0.02)

    def test_killed_ten_times(self):
        whole, _ = self.make("whole")
        self.assertEqual(self.run_sweep(whole).returncode, 0)
        directory, _ = self.make("killed")
        rng, kills = random.Random(7), 0
        while kills < 10:
            process = self.start(directory)
            self.wait_for_training(directory, process)
            time.sleep(rng.uniform(0, 0.8))
            if process.poll() is not None:
                process.stderr.close()
                break  # it was faster than its killer
            trainings = children(process.pid) if rng.random() < 0.5 else []
            for pid in (process.pid, *trainings):  # with its trainings, or leaving them behind
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            process.wait()
            process.stderr.close()
            kills += 1
        done = self.run_sweep(directory)
        self.assertEqual(done.returncode, 0, done.stderr)
        print(f"\nkilled {kills} times", file=sys.stderr)
        self.assertGreaterEqual(kills, 3)
        self.assertEqual(self.table(directory), self.table(whole))


def children(parent):
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == parent:
                        found.append(int(name))
            except OSError:
                pass
    return found


if __name__ == "__main__":
    unittest.main()
