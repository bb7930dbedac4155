"""What the tests of scripts/sweep.py share."""
import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = os.path.join(os.path.dirname(HERE), "scripts")
if not importlib.util.find_spec("scipy") and sys.executable != "/usr/bin/python3":
    os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])  # Debian's packages work with Debian's Python
sys.path.insert(0, SCRIPTS)

import numpy as np  # noqa: E402

from sweep import law  # noqa: E402

BINARY = os.environ.get("TRAIN_GPT_BINARY") or os.path.join(os.path.dirname(HERE), "train_gpt")
SHARED = os.environ.get("TRAIN_GPT_SHARED")
TRUE = law.Law(1.7, 400.0, 900.0, 0.34, 0.31)


def sweep(*arguments, **options):
    command = [sys.executable, os.path.join(SCRIPTS, "sweep.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def grid_points(noise=0.0, seed=0, sizes=8, budgets=8):
    """Sizes around the optimum of each budget, as in an IsoFLOP experiment."""
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
