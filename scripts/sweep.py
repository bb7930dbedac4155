#!/usr/bin/env python3
"""From a time budget to a scaling law, a plot and a tested prediction. See scripts/sweep/README.md."""
import argparse
import importlib
import os
import sys

try:
    import matplotlib  # noqa: F401
    import numpy  # noqa: F401
    import scipy  # noqa: F401
except ImportError as missing:
    # Debian's python3-numpy works with Debian's python3, which need not be the first in PATH.
    if os.path.exists("/usr/bin/python3") and not os.environ.get("TRAIN_GPT_SWEEP_PYTHON"):
        os.environ["TRAIN_GPT_SWEEP_PYTHON"] = "tried"
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    sys.exit(f"sweep: {missing}; install python3-numpy, python3-scipy and python3-matplotlib (Debian, Ubuntu)")

from sweep import SweepError  # noqa: E402  (the package beside this file, which comes before this file's own name)


class Parser(argparse.ArgumentParser):
    def error(self, message):  # one line, as from the binary; argparse would print the usage before it
        print(f"{self.prog}: {message}; {self.prog} --help lists what there is", file=sys.stderr)
        sys.exit(2)


def positive(kind, limit=None):
    def parse(text):
        value = kind(text)
        if not (value > 0 and (limit is None or value <= limit)):
            raise ValueError
        return value

    parse.__name__ = f"positive {'number' if kind is float else 'count'}"  # argparse: "invalid ... value"
    return parse


def count(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def multiple(text):
    value = float(text)
    if value != 0 and not 1 < value <= 1e6:
        raise ValueError
    return value


def add_fit(commands):
    p = commands.add_parser("fit", help="fit L(N, D) to anybody's table of runs",
                            description="Fits L(N, D) = E + A / N^alpha + B / D^beta to a CSV of runs whose header "
                            "names the loss and two of N, D and C (params, tokens, flops, ...). Exit status 1, with "
                            "the reason, where the table cannot bear exponents.")
    p.add_argument("file", metavar="FILE.csv")
    p.add_argument("--drop-highest", type=count, default=0, metavar="K", help="leave out the K runs of highest loss")
    p.add_argument("--delta", type=positive(float), default=1e-3, help="of the Huber loss (1e-3)")
    p.add_argument("--bootstrap", type=positive(int, 10**6), default=1000, metavar="SAMPLES", help="(1000)")
    p.add_argument("--seed", type=count, default=1, help="of the bootstrap")
    p.add_argument("--column", action="append", default=[], metavar="KEY=HEADER",
                   help="what a column is, e.g. loss=pile_test_xent; keys: N, D, C, loss, N_body, N_head")
    p.add_argument("--format", choices=("text", "json"), default="text")
    p.set_defaults(module="fit")


def add_out(p):
    p.add_argument("--out", default="runs/sweep", metavar="DIR", help="the sweep's directory (runs/sweep)")


def add_binary(p):
    p.add_argument("--binary", help="train_gpt (the one in the repository)")


def add_plan(commands):
    p = commands.add_parser("plan", help="measure this machine, lay out the runs that fill a budget")
    p.add_argument("--data", required=True, help="a text file, or a directory of token shards with a held-out part")
    p.add_argument("--budget", required=True, help="30min, 2h, or FLOPs (6 N D): 1e15")
    add_out(p)
    add_binary(p)
    p.add_argument("--context", type=positive(int), default=128, help="tokens a sequence (128)")
    p.add_argument("--seed", type=count, default=1)
    p.add_argument("--repeats", type=count, default=1, help="further seeds of every run (1)")
    p.add_argument("--span", type=positive(float), default=64, help="largest over smallest compute of the grid (64)")
    p.add_argument("--tokens-per-parameter", type=positive(float), default=20,
                   help="the expected optimum, the grid's middle (20: Hoffmann et al. 2022, table 3)")
    p.add_argument("--holdout", type=multiple, default=8, help="compute of the test over the grid's largest; 0: none (8)")
    p.add_argument("--holdout-sizes", type=int, choices=(1, 2, 3), default=1,
                   help="sizes to test: 3 also measures which is best (1)")
    p.add_argument("--val-fraction", type=positive(float, 0.9), default=0.1, help="the end of a text file that is held out (0.1)")
    p.add_argument("--jobs", type=positive(int), help="binaries side by side (one a core, at most 8)")
    p.add_argument("--gpus", default="", help="train on these GPUs: 0,1")
    p.add_argument("--ranks", type=positive(int), default=1,
                   help="of each run: so many GPUs, or parts of a process's cores, train it together (1)")
    p.set_defaults(module="plan")


def add_run(commands):
    p = commands.add_parser("run", help="make the plan's runs: skip finished ones, resume interrupted ones")
    add_out(p)
    add_binary(p)
    p.add_argument("--jobs", type=positive(int), help="binaries side by side (as planned)")
    p.set_defaults(module="run")


def add_test(commands):
    p = commands.add_parser("test", help="predict the held-out budget, then run it: predicted against measured")
    add_out(p)
    add_binary(p)
    p.add_argument("--jobs", type=positive(int), help="binaries side by side (as planned)")
    p.set_defaults(module="ask", function="test_command")


def add_ask(commands):
    p = commands.add_parser("ask", help="what to train with a budget, by the sweep's law")
    add_out(p)
    p.add_argument("--compute", type=positive(float, 1e40), metavar="FLOPS", help="6 N D, e.g. 1e20")
    p.add_argument("--gpus", type=positive(int), help="so many GPUs for --hours")
    p.add_argument("--hours", type=positive(float, 1e7))
    p.add_argument("--gpu", choices=("h100", "h200", "a100", "b200", "l40s", "rtx4090"), default="h100", help="(h100)")
    p.add_argument("--hardware", help="instead of --gpu and --mfu: a machine that `train_gpt plan` knows, or its file")
    p.add_argument("--binary", help="the train_gpt that plans (that of this checkout)")
    p.add_argument("--mfu", type=positive(float, 1), default=0.4, help="share of the peak that training reaches (0.4)")
    p.add_argument("--format", choices=("text", "json"), default="text")
    p.set_defaults(module="ask")


def add_report(commands):
    p = commands.add_parser("report", help="write the sweep's HTML, plots and data to DIR/report")
    add_out(p)
    p.set_defaults(module="report")


def main():
    parser = Parser(prog="sweep.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_plan, add_run, add_fit, add_test, add_ask, add_report):
        add(commands)
    arguments = parser.parse_args()
    module = importlib.import_module(f"sweep.{arguments.module}")
    try:
        getattr(module, getattr(arguments, "function", "command"))(arguments)
    except SweepError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"sweep: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
