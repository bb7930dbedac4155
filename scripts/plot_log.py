#!/usr/bin/env python3
"""Draws the training and validation loss of one or more runs from their log.jsonl.

  scripts/plot_log.py RUN... --out loss.svg [--title TEXT] [--line 1.88=nanoGPT]

Needs matplotlib (Debian: python3-matplotlib). The training loss is smoothed (exponential mean over about 1 % of the run).
"""
import argparse
import json
import os
import sys


def read_log(run):
    path = os.path.join(run, "log.jsonl")
    try:
        with open(path) as file:
            return [json.loads(line) for line in file if line.strip()]
    except (OSError, json.JSONDecodeError) as error:
        sys.exit(f"plot_log: cannot read {path}: {error}")


def smoothed(values, weight):
    result, mean = [], None
    for value in values:
        mean = value if mean is None else (1 - weight) * mean + weight * value
        result.append(mean)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run; NAME=RUN names it in the legend")
    parser.add_argument("--out", required=True, help="picture to write: .svg or .png")
    parser.add_argument("--title", default="")
    parser.add_argument("--line", action="append", default=[], metavar="LOSS=NAME", help="a horizontal line to compare with")
    arguments = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "train_gpt"  # the same log gives the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    lowest, highest = float("inf"), 0.0
    for i, argument in enumerate(arguments.runs):
        name, _, run = argument.rpartition("=")
        log = [entry for entry in read_log(run) if entry.get("loss") is not None]
        if not log:
            sys.exit(f"plot_log: {run}/log.jsonl has no losses yet")
        losses = smoothed([entry["loss"] for entry in log], max(0.01, 2 / len(log)))
        axes.plot([entry["step"] for entry in log], losses, color=f"C{i}", alpha=0.45, linewidth=1)
        held_out = [(entry["step"], entry["val_loss"]) for entry in log if entry.get("val_loss") is not None]
        label = name or os.path.basename(os.path.normpath(run))
        if held_out:
            axes.plot(*zip(*held_out), "o-", color=f"C{i}", markersize=4, label=f"{label}: held out {held_out[-1][1]:.3f}")
        lowest = min([lowest, *losses, *(loss for _, loss in held_out)])
        highest = max(highest, losses[len(losses) // 10])
    for line in arguments.line:
        value, _, name = line.partition("=")
        axes.axhline(float(value), color="gray", linestyle="--", linewidth=1)
        axes.annotate(f"{name} {value}", (0.99, float(value)), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                      fontsize=9, color="gray")
    axes.set_ylim(lowest - 0.05, highest)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token (thin: training)")
    axes.set_title(arguments.title)
    axes.grid(alpha=0.25)
    axes.legend()
    figure.tight_layout()
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.endswith(".svg") else None)


main()
