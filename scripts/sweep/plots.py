"""The report's plots, each a function from the data to a matplotlib figure."""
import matplotlib

matplotlib.use("Agg")
matplotlib.rcParams.update({"svg.hashsalt": "train_gpt", "font.size": 10, "axes.grid": True, "grid.alpha": 0.25,
                            "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # noqa: E402

from .approaches import isoflop_groups, parabola, sizes  # noqa: E402
from .law import interval  # noqa: E402
from .shapes import short  # noqa: E402

SIZE = (7.2, 4.6)


def colours(count):
    return plt.cm.viridis(np.linspace(0.05, 0.9, count))


def log_axis(axis, values, counts=True):
    """Logarithmic, with labels at 1, 2 and 5 where there is room, as 20k or 1.5M."""
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    decades = np.log10(max(values) / min(values))
    subs = (1,) if decades > 3 else (1, 3) if decades > 1.6 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda v, _: short(v) if counts else f"{v:.0e}".replace("e+", "e")))


def loss_axis(axis, values):
    """Logarithmic, since the fit is; plain numbers."""
    axis.axes.set_yscale("log")
    low, high = min(values), max(values)
    step = next(s for s in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 1e9) if (high - low) / s < 9)
    ticks = [k * step for k in range(int(low / step), int(high / step) + 2) if k * step > 0]
    axis.set_ticks([tick for tick in ticks if low * 0.995 <= tick <= high * 1.005] or [low, high])
    axis.set_ticks([], minor=True)
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))


def isoflop(result, unit):
    """Loss over size at equal compute: measured points, the parabolas through them, the law's curves."""
    figure, axes = plt.subplots(figsize=SIZE)
    groups = isoflop_groups(result.table, 7)
    losses, all_sizes = [], list(result.table.N)
    for colour, (C, N, loss) in zip(colours(len(groups)), groups):
        span = np.geomspace(N.min() / 1.15, N.max() * 1.15, 100)
        axes.plot(span, result.predictor.loss(span, C / 6 / span), "--", color=colour, linewidth=1)
        axes.plot(N, loss, "o", color=colour, markersize=5, label=f"{C:.1e}".replace("e+", "e"))
        best, low, inside, curve = parabola(N, loss)
        if curve is not None:
            p, mean = curve
            x = np.linspace(np.log(N.min()), np.log(N.max()), 100)
            axes.plot(np.exp(x), np.polyval(p, x - mean), color=colour, linewidth=1.4)
        if inside:
            axes.plot(best, low, "*", color=colour, markersize=13, markeredgecolor="black", markeredgewidth=0.6)
        losses += list(loss)
    log_axis(axes.xaxis, all_sizes)
    if losses:
        loss_axis(axes.yaxis, losses)
        axes.legend(title="FLOPs (6 N D)", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel("parameters N")
    axes.set_ylabel(f"held-out loss, {unit}")
    axes.set_title("IsoFLOP curves: parabolas (solid, star: their lowest point) and the law of the usual shape (dashed)", fontsize=10)
    return figure


def curves(result, unit):
    """Loss over tokens for each size, with the law's curves."""
    figure, axes = plt.subplots(figsize=SIZE)
    table = result.table
    groups = sizes(table.N)
    if len(groups) > 12:
        groups = [groups[i] for i in np.unique(np.linspace(0, len(groups) - 1, 12).astype(int))]
    for colour, rows in zip(colours(len(groups)), groups):
        N = np.exp(np.log(table.N[rows]).mean())
        D = np.geomspace(table.D[rows].min() / 1.2, table.D[rows].max() * 1.2, 50)
        axes.plot(D, result.predictor.loss(N, D, result.aspects()[rows].mean()), "-", color=colour, linewidth=1)
        axes.plot(table.D[rows], table.loss[rows], "o", color=colour, markersize=5, label=short(N))
    log_axis(axes.xaxis, table.D)
    loss_axis(axes.yaxis, table.loss)
    axes.set_xlabel("training tokens D")
    axes.set_ylabel(f"held-out loss, {unit}")
    axes.legend(title="parameters", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title("Every run, and the law (lines)", fontsize=10)
    return figure


def reach(result, outcome):
    """Budgets to draw: those of the table, and as far as the held-out one."""
    C = result.table.C
    return np.geomspace(C.min(), max(C.max() * 3, outcome["compute"] * 1.5 if outcome else 0), 60)


def band(axes, C, values, colour, label):
    low, high = np.array([interval(column) for column in values]).T
    axes.fill_between(C, low, high, color=colour, alpha=0.2, linewidth=0, label=label)


def frontier(result, unit, outcome=None):
    """The lowest loss for a budget, with its interval; runs behind it; the held-out run if there is one."""
    figure, axes = plt.subplots(figsize=SIZE)
    C = reach(result, outcome)
    table = result.table
    axes.plot(table.C, table.loss, "o", color="0.65", markersize=4, label="runs of the fit")
    axes.plot(C, result.predictor.loss(*result.predictor.optimum(C)), color="C0", linewidth=1.6, label="the law at its best size")
    band(axes, C, [result.predictors.loss(*result.predictors.optimum(c)) for c in C], "C0", "its 95 % interval")
    losses = list(table.loss) + [float(result.predictor.loss(*result.predictor.optimum(C[-1])))]
    if outcome:
        axes.axvspan(table.C.max(), C[-1], color="0.5", alpha=0.08, linewidth=0)
        for i, row in enumerate(outcome["runs"]):
            axes.plot(6 * row["params"] * row["tokens"], row["measured"], "D", color="C3", markersize=6,
                      label="held out: measured" if i == 0 else None)
            losses.append(row["measured"])
    log_axis(axes.xaxis, C, counts=False)
    loss_axis(axes.yaxis, losses)
    axes.set_xlabel("compute, FLOPs (6 N D)")
    axes.set_ylabel(f"held-out loss, {unit}")
    axes.legend(fontsize=9)
    beyond = " (shaded: beyond all fitted runs)" if outcome else ""
    axes.set_title("The compute-optimal frontier" + beyond, fontsize=10)
    return figure


def optimum(result, outcome=None):
    """Best size and token count over compute: approach 3 with its interval, the points of 1 and 2."""
    figure, panes = plt.subplots(1, 2, figsize=(10, 4.4))
    C = reach(result, outcome)
    for i, (axes, what) in enumerate(zip(panes, ("parameters N", "training tokens D"))):
        middle = result.predictor.optimum(C)[i]
        axes.plot(C, middle, color="C0", linewidth=1.6,
                  label=f"approach 3: C^{result.predictor.a if i == 0 else 1 - result.predictor.a:.3f}")
        band(axes, C, [result.predictors.optimum(c)[i] for c in C], "C0", "its 95 % interval")
        values = list(middle)
        for name, mark, colour in (("1", "x", "C1"), ("2", "*", "C2")):
            points = result.approaches[name]["points"]
            if points:
                c, N = np.array(points)[:, 0], np.array(points)[:, 1]
                y = N if i == 0 else c / 6 / N
                a = result.approaches[name]["a"]
                label = f"approach {name}" + (f": C^{a if i == 0 else 1 - a:.3f}" if a is not None else "")
                axes.plot(c, y, mark, color=colour, markersize=9 if name == "2" else 5, label=label)
                values += list(y)
        best = outcome and outcome["best_params_measured"]
        if best and best["inside"]:
            y = best["params"] if i == 0 else outcome["compute"] / 6 / best["params"]
            axes.plot(outcome["compute"], y, "D", color="C3", markersize=6, label="held out: measured")
        log_axis(axes.xaxis, C, counts=False)
        log_axis(axes.yaxis, values)
        axes.set_xlabel("compute, FLOPs (6 N D)")
        axes.set_ylabel("best " + what)
        axes.legend(fontsize=8)
    return figure


def residuals(result):
    """How far each run lies from the law, over N and over D: a law that holds leaves no pattern."""
    figure, panes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    table, r = result.table, 100 * (np.exp(result.unexplained()) - 1)
    for axes, x, other, what, hue in ((panes[0], table.N, table.D, "parameters N", "tokens D"),
                                      (panes[1], table.D, table.N, "training tokens D", "parameters N")):
        dots = axes.scatter(x, r, c=other, cmap="viridis", s=26, norm=matplotlib.colors.LogNorm())
        axes.axhline(0, color="black", linewidth=0.8)
        log_axis(axes.xaxis, x)
        axes.set_xlabel(what)
        bar = figure.colorbar(dots, ax=axes)
        bar.set_label(hue)
        subs = (1,) if max(other) / min(other) > 1000 else (1, 3) if max(other) / min(other) > 40 else (1, 2, 5)
        bar.ax.yaxis.set_major_locator(LogLocator(subs=subs))
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())
    panes[0].set_ylabel("measured loss above the law, %")
    return figure


def save(figure, base):
    """Writes base.png and base.svg; the same data gives the same files."""
    figure.tight_layout()
    figure.savefig(base + ".png", dpi=150, bbox_inches="tight")
    figure.savefig(base + ".svg", metadata={"Date": None}, bbox_inches="tight")
    plt.close(figure)
