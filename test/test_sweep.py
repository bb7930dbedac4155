#!/usr/bin/env python3
"""Tests of scripts/sweep.py, from plan to report: test/test_sweep.py [-v] [TestCase.test]

They train models of 20,000 parameters with the binary (TRAIN_GPT_BINARY, or the one in the repository) for a minute.
"""
import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import unittest

from sweep_testing import BINARY, SCRIPTS, Folder, sweep  # first: this import finds the packages

import numpy as np

from sweep import SweepError, ask, grid, law, shapes, store
from sweep import plan as planning
from sweep.speed import Speed

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
        done = sweep("test", "--out", self.folder, "--binary", sys.executable)  # with all results, nothing is run
        self.assertEqual(done.returncode, 0, done.stderr)
        for row in ask.outcome(self.folder, prediction)["runs"]:
            self.assertLess(abs(row["error"]), 0.01)
        best = truth.optimum(prediction["compute"])[0]
        self.assertAlmostEqual(np.log(prediction["best_params"] / best), 0, delta=0.3)
        answer = json.loads(sweep("ask", "--compute", "1e16", "--out", self.folder, "--format", "json").stdout)
        low, high = answer["loss_interval"]
        self.assertTrue(low < answer["loss"] < high)
        self.assertIn("train_gpt train --data", answer["command"])
        if os.path.exists(BINARY):
            done = sweep("ask", "--gpus", "8", "--hours", "10", "--hardware", "h100-sxm", "--binary", BINARY, "--out", self.folder,
                         "--format", "json")
            self.assertEqual(done.returncode, 0, done.stderr)
            planned = json.loads(done.stdout)
            flops = 6 * planned["params"] * planned["plan"]["tokens_per_second"] * 36000
            self.assertAlmostEqual(flops / planned["compute"], 1, delta=0.1)
            self.assertIn("--ranks 8", planned["command"])
            done = sweep("ask", "--gpus", "8", "--hardware", "h100-sxm", "--out", self.folder)
            self.assertEqual((done.returncode, "--hours" in done.stderr), (2, True))
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

        # A branch has exactly the loss of a run of its own.
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

    @unittest.skipIf(len(os.sched_getaffinity(0)) < 2, "one core")
    def test_runs_of_several_ranks(self):
        directory, plan = self.make(trunks=1)
        plan["setting"].update(ranks=2, slots=1)
        for run in plan["runs"]:
            run["config"]["ranks"] = 2
        store.write_json(os.path.join(directory, "plan.json"), plan)
        done = self.run_sweep(directory)
        self.assertEqual(done.returncode, 0, done.stderr)
        for run in plan["runs"]:
            ranks, _ = shapes.shared_batch(2, run["config"]["step_tokens"] // 64, 64)
            with open(os.path.join(store.run_path(directory, run), "log.jsonl")) as file:
                self.assertEqual({json.loads(line).get("ranks", 1) for line in file}, {ranks})
        self.assertEqual(shapes.shared_batch(2, 6, 128), (2, 3))
        self.assertEqual(shapes.shared_batch(4, 6, 128), (3, 2))
        self.assertEqual(shapes.shared_batch(8, 1, 128), (1, 1))
        self.assertEqual(shapes.shared_batch(8, 64, 128), (8, 8))

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
                break  # the sweep ended before it was killed
            trainings = children(process.pid) if rng.random() < 0.5 else []
            for pid in (process.pid, *trainings):  # half of the time together with its trainings
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
