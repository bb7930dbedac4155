#!/usr/bin/env python3
"""Tests of the laws that scripts/sweep.py fits: test/test_sweep_law.py [-v] [TestCase.test]

TRAIN_GPT_SHARED names a folder with data/scaling/chinchilla_svg_extracted_data.csv; without it that check is left out.
"""
import json
import os
import sys
import time
import unittest
import warnings

from sweep_testing import SHARED, TRUE, Folder, grid_points, sweep  # first: this import finds the packages

import numpy as np

from sweep import SweepError, fit, law, table
from sweep.refined import RefinedLaw, RefinedProblem, refine


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

    def test_runs_without_a_loss_are_left_out_and_counted(self):
        rows = [*zip(*grid_points(0.01))]
        whole = self.write(("parameter_count", "total_tokens", "loss"), rows)
        rows.insert(3, (1e6, 1e9, "NaN"))
        rows.insert(9, (1e6, 1e9, "diverged"))
        holes = self.write(("parameter_count", "total_tokens", "loss"), rows, "holes.csv")
        with open(holes) as file:
            text = file.read()
        with open(holes, "w") as file:
            file.write(text.replace("\n", "\n\n", 1))  # an empty line counts as a row of the file
        a, b = (sweep("fit", path, "--bootstrap", "50") for path in (whole, holes))
        self.assertEqual((a.returncode, a.stderr), (0, ""))
        self.assertEqual(a.stdout, b.stdout)
        self.assertIn("2 of 66 runs have no loss and are left out: row 6, 12\n", b.stderr)

    def test_budgets_and_decimal_commas(self):
        N, D, L = grid_points(0.01)
        plain = table.read_table(self.write(("N", "budget", "loss"), zip(N, 6 * N * D, L)))
        with open(self.path("comma.csv"), "w") as file:
            file.write("n;budget;val loss\n")
            for n, d, loss in zip(N, D, L):
                file.write(f"{n};{6 * n * d};{loss}\n".replace(".", ","))
        comma = table.read_table(self.path("comma.csv"))
        for name in ("N", "D", "C", "loss"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(comma, name))

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
        """Six budgets, seven sizes around the best of each, two seeds, shapes off the usual aspect by a factor of up to 1.6."""
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
        """Beyond the grid the sum of two terms is a percent off where the refined law is right; runs that follow the sum get no
        refinement."""
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

    def test_noise_is_refused_and_never_a_traceback(self):
        for seed in range(24):
            r = np.random.default_rng(seed)
            N, D, L = np.exp(r.uniform(12, 24, 20)), np.exp(r.uniform(18, 28, 20)), np.exp(r.normal(1, 0.5, 20))
            if seed % 2:
                N = np.repeat(N[:5], 4)  # some sizes have curves, which may cover no budget together
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self.refused(N, D, L)

    def test_status_and_one_line(self):
        good = [*zip(*grid_points())]
        for rows, header, status, words in (
                (good[:5], ("N", "D", "loss"), 1, "too few points"),
                ([("x", 1, 2)], ("N", "D", "loss"), 1, "not a positive"),
                (good, ("N", "D", "colour"), 1, "wanted columns"), ([], ("N", "D", "loss"), 1, "no runs"),
                ([(1, 2)], ("N", "D", "loss"), 1, "no run has a loss")):
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


if __name__ == "__main__":
    unittest.main()
