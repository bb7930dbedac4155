"""Approaches 1 and 2 of Hoffmann et al. 2022 (sec. 3.1, 3.2): exponents of N_opt ~ C^a without assuming a law L(N, D).

A table of finished runs holds no training curves. Where each size has several D, the size's curve is its loss over
compute, interpolated in logarithms, and both approaches read these curves. Otherwise runs of about equal compute are grouped.
"""
import numpy as np
from scipy.interpolate import PchipInterpolator
from scipy.stats import t as student

SAME = 0.02  # sizes that differ by less (in logarithms) are one size
NEAR = 0.03  # a run this near to a budget is a run of that budget


def sizes(N):
    """Indices of the runs of each size, by ascending size."""
    order = np.argsort(N)
    cuts = np.flatnonzero(np.diff(np.log(N[order])) > SAME) + 1
    return np.split(order, cuts)


def curves(table, fewest=3):
    """(N, log C of its runs, log-loss function of log C) of each size with at least `fewest` token counts."""
    found = []
    for rows in sizes(table.N):
        c = np.log(table.C[rows])
        unique = np.unique(np.round(c, 6))
        if len(unique) < fewest:
            continue
        loss = [np.log(table.loss[rows][np.isclose(c, x, atol=2e-6)]).mean() for x in unique]
        function = PchipInterpolator(unique, loss) if len(unique) > 1 else (lambda c, only=loss[0]: only)
        found.append((np.exp(np.log(table.N[rows]).mean()), unique, function))
    return found


def covers(span, c):
    return span[0] - NEAR <= c <= span[-1] + NEAR


def power_law(C, X):
    """Least squares on log X = k log C + c: (k, its 95 % interval or None, factor exp c)."""
    x, y = np.log(C), np.log(X)
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    k, c = np.polyfit(x, y, 1)
    interval = None
    if len(x) > 2:
        error = np.sqrt(np.sum((y - k * x - c) ** 2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
        half = student.ppf(0.975, len(x) - 2) * error
        interval = [float(k - half), float(k + half)]
    return float(k), interval, float(np.exp(c))


def levels(found, count, needed):
    """Budgets at which at least `needed` sizes have a measured loss."""
    low, high = min(c[0] for _, c, _ in found), max(c[-1] for _, c, _ in found)
    return [c for c in np.linspace(low, high, count) if sum(covers(span, c) for _, span, _ in found) >= needed]


def common_budgets(table):
    """The budgets (log C) at which a grid of IsoFLOP curves was laid out: three or more sizes at the same compute."""
    c = np.sort(np.log(table.C))
    groups = np.split(c, np.flatnonzero(np.diff(c) > NEAR) + 1)
    return [g.mean() for g in groups if len(g) >= 3 and np.ptp(g) < 2 * NEAR]


def isoflop_groups(table, count=10):
    """[(C, sizes, losses)]: the points of each IsoFLOP curve, from curves or from runs of about equal compute."""
    found = curves(table)
    groups = []
    if len(found) >= 3:
        common = common_budgets(table)
        if len(common) >= 4:  # the budgets are those of the grid, so even a size with one run is on a curve
            found = curves(table, 1)
        for c in common if len(common) >= 4 else levels(found, count, 3):
            at = [(N, float(np.exp(f(c)))) for N, span, f in found if covers(span, c)]
            if len(at) >= 3:
                groups.append((float(np.exp(c)), *map(np.array, zip(*at))))
        return groups
    order = np.argsort(table.C)
    cuts = np.flatnonzero(np.diff(np.log(table.C[order])) > 0.1) + 1
    for rows in np.split(order, cuts):
        if len(rows) >= 4 and np.ptp(np.log(table.C[rows])) < 0.7:
            rows = rows[np.argsort(table.N[rows])]
            groups.append((float(np.exp(np.log(table.C[rows]).mean())), table.N[rows], table.loss[rows]))
    return groups


def envelope(table, count=40):
    """Approach 1: the lowest loss at each budget. [(C, N, loss)]; sizes at the grid's edge are left out, since a better
    one may lie beyond it."""
    found = curves(table)
    points = []
    if len(found) >= 3:
        for c in levels(found, count, 2):
            at = [(float(np.exp(f(c))), N) for N, span, f in found if span[0] <= c <= span[-1]]
            if not at:  # the budget lies a little beyond every curve that is near it
                continue
            loss, N = min(at)
            inside = [n for _, n in at]
            if min(inside) < N < max(inside):
                points.append((float(np.exp(c)), N, loss))
        return points
    best = np.inf
    for i in np.argsort(table.C):
        if table.loss[i] < best:
            best = table.loss[i]
            points.append((float(table.C[i]), float(table.N[i]), float(best)))
    return points


def parabola(N, loss):
    """The parabola of loss over log N: (N at its lowest point, the loss there, inside the range?, coefficients)."""
    x = np.log(N)
    p = np.polyfit(x - x.mean(), loss, 2)
    if p[0] <= 0:
        return float(N[np.argmin(loss)]), float(loss.min()), False, None
    vertex = -p[1] / (2 * p[0])
    inside = x.min() < vertex + x.mean() < x.max()
    return float(np.exp(np.clip(vertex, -50, 50) + x.mean())), float(np.polyval(p, vertex)), bool(inside), (p, x.mean())


def summary(points):
    C, N = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    law = power_law(C, N) if len(points) >= 3 and np.ptp(np.log(C)) > np.log(3) else None
    return {"a": law and law[0], "interval": law and law[1], "factor": law and law[2],
            "points": [list(map(float, p)) for p in points]}


def approaches(table):
    """{"1": ..., "2": ...}: each {"a", "interval", "factor", "points": [[C, N, loss]]}; a: None where there is none."""
    optima, edge = [], 0
    for C, N, loss in isoflop_groups(table):
        best, low, inside, _ = parabola(N, loss)
        if inside:
            optima.append((C, best, low))
        else:
            edge += 1
    second = summary(optima)
    second["at_edge"] = edge
    return {"1": summary(envelope(table)), "2": second}
