#!/usr/bin/env python3
"""From a time budget to a scaling law, a plot and a tested prediction. See scripts/sweep/README.md."""
import argparse
import os
import sys

try:
    import matplotlib  # noqa: F401
    import numpy  # noqa: F401
    import scipy  # noqa: F401
except ImportError as missing:
    # Debian's python3-numpy belongs to Debian's python3, which need not be the first in PATH.
    if os.path.exists("/usr/bin/python3") and not os.environ.get("TRAIN_GPT_SWEEP_PYTHON"):
        os.environ["TRAIN_GPT_SWEEP_PYTHON"] = "tried"
        os.execv("/usr/bin/python3", ["/usr/bin/python3", *sys.argv])
    sys.exit(f"sweep: {missing}; install python3-numpy, python3-scipy and python3-matplotlib (Debian, Ubuntu)")

from sweep import SweepError  # noqa: E402  (the package beside this file, which comes before this file's own name)


def positive(kind, limit=None):
    def parse(text):
        value = kind(text)
        if not (value > 0 and (limit is None or value <= limit)):
            raise ValueError
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def count(text):
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def add_fit(commands):
    p = commands.add_parser("fit", help="fit L(N, D) to anybody's table of runs",
                            description="Fits L(N, D) = E + A / N^alpha + B / D^beta to a CSV of runs whose header names "
                            "the loss and two of N, D and C (params, tokens, flops, ...). Exit status 1, with the "
                            "reason, where the table cannot bear exponents.")
    p.add_argument("file", metavar="FILE.csv")
    p.add_argument("--drop-highest", type=count, default=0, metavar="K", help="leave out the K runs of highest loss")
    p.add_argument("--delta", type=positive(float), default=1e-3, help="of the Huber loss (1e-3)")
    p.add_argument("--bootstrap", type=positive(int, 10**6), default=1000, metavar="SAMPLES", help="(1000)")
    p.add_argument("--seed", type=count, default=1, help="of the bootstrap")
    p.add_argument("--column", action="append", default=[], metavar="KEY=HEADER",
                   help="what a column is, e.g. loss=pile_test_xent; keys: N, D, C, loss, N_body, N_head")
    p.add_argument("--format", choices=("text", "json"), default="text")
    p.set_defaults(module="fit")


def main():
    parser = argparse.ArgumentParser(prog="sweep.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_fit(commands)
    arguments = parser.parse_args()
    module = __import__(f"sweep.{arguments.module}", fromlist=["command"])
    try:
        module.command(arguments)
    except SweepError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
