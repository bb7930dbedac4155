"""`sweep fit`: the law with its intervals, approaches 1 and 2 beside it, conventions of N, and refusals."""
import json
import sys

import numpy as np

from . import SweepError
from .approaches import approaches, sizes
from .law import DELTA, NAMES, bootstrap, fit, interval, refit
from .refined import MORE, RefinedLaw, refine

CONVENTIONS = (("N", "all parameters"), ("N_head", "blocks and head"), ("N_body", "blocks only"))
MIN_RUNS, MIN_SIZES, MIN_DECADES = 8, 4, 1.0
WIDEST_RATIO, WIDEST_A = 3.0, 0.3  # of the 95 % intervals: high / low of alpha and beta; width of a


class Result:
    """A fit and all that comes with it; `reasons` is empty when its exponents can be trusted."""

    def __init__(self, table, law, objective, problem, laws, delta):
        self.table, self.law, self.objective, self.problem, self.laws = table, law, objective, problem, laws
        self.delta = delta
        self.predictor, self.predictors, self.gain = RefinedLaw.of(law), RefinedLaw.of(laws), None  # see refined.py
        self.reasons = []
        self.approaches, self.conventions, self.noise = {}, [], None

    def residuals(self):
        return np.log(self.table.loss) - np.log(self.law.loss(self.table.N, self.table.D))

    def scatter(self, r=None):
        """Standard deviation of log L about the law, from the median so that stray runs count little."""
        r = self.residuals() if r is None else r
        return float(1.4826 * np.median(np.abs(r)) * np.sqrt(len(r) / max(1, len(r) - 5)))

    def aspects(self):
        return np.array(self.table.extra.get("aspect", np.ones(len(self.table))), dtype=float)

    def unexplained(self):
        """Residuals of log L from what the predictor says of each run."""
        return np.log(self.table.loss) - np.log(self.predictor.loss(self.table.N, self.table.D, self.aspects()))

    def loss_interval(self, N, D, aspect=1.0, level=0.95, seed=2):
        """Interval for the loss of one new run: the predictors of the bootstrap, each with a run's scatter on top."""
        scatter = max(self.scatter(self.unexplained()), self.noise or 0)  # either one may be small by chance
        noise = np.random.default_rng(seed).normal(0, scatter, len(self.laws.alpha))
        return interval(self.predictors.loss(N, D, aspect) * np.exp(noise), level)

    def as_dict(self):
        values = {**self.law.as_dict(), "objective": self.objective, "delta": self.delta, "a": float(self.law.a),
                  "b": 1 - float(self.law.a), "runs": len(self.table)}
        columns = {name: getattr(self.laws, name) for name in NAMES}
        columns["a"], columns["b"] = self.laws.a, 1 - self.laws.a
        values["intervals"] = {name: interval(column) for name, column in columns.items()}
        values["standard_errors"] = {name: float(np.std(column)) for name, column in columns.items()}
        values["bootstrap_samples"] = len(self.laws.alpha)
        values["scatter"], values["noise"] = self.scatter(), self.noise
        if self.gain is not None:
            values["refined"] = {**self.predictor.as_dict(), "a": float(self.predictor.a), "information_gain": self.gain,
                                 "scatter": self.scatter(self.unexplained()),
                                 "intervals": {name: interval(getattr(self.predictors, name)) for name in (*NAMES, *MORE, "a")}}
        values["approaches"], values["conventions"] = self.approaches, self.conventions
        values["most_stable_convention"] = next((c["name"] for c in self.conventions if c["most_stable"]), None)
        return values


def check_grid(table):
    """The reason why no fit is tried, or None."""
    groups = len(sizes(table.N))
    if len(table) < MIN_RUNS:
        return f"too few points: {len(table)} runs for five parameters; at least {MIN_RUNS} are needed"
    if groups < MIN_SIZES or len(sizes(table.D)) < MIN_SIZES:
        return (f"too few points: {groups} model sizes and {len(sizes(table.D))} token counts; "
                f"at least {MIN_SIZES} of each are needed")
    decades = np.log10(table.C.max() / table.C.min())
    if decades < MIN_DECADES:
        return f"the runs span only a factor {10**decades:.1f} in compute; at least 10 is needed"
    n, d = np.log(table.N), np.log(table.D)
    if abs(np.corrcoef(n, d)[0, 1]) > 0.99:
        return "N and D rise together in all runs (one token count for each size): their exponents cannot be told apart"
    return None


def check_fit(result):
    """The reasons why the exponents cannot be trusted."""
    law, table, reasons = result.law, result.table, []
    with np.errstate(all="ignore"):  # of noise the fit may be far out, and is refused
        terms = (("alpha", law.A / table.N**law.alpha), ("beta", law.B / table.D**law.beta))
    for name, term in terms:
        value, (low, high) = getattr(law, name), interval(getattr(result.laws, name))
        axis = "N" if name == "alpha" else "D"
        if value <= 0.01 or np.ptp(term) < 1e-3 * table.loss.min():
            reasons.append(f"the loss hardly depends on {axis} in this grid ({name} = {value:.3g})")
        elif low <= 0 or high / low > WIDEST_RATIO:
            reasons.append(f"interval too wide: {name} = {value:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    low, high = interval(result.laws.a)
    if not reasons and high - low > WIDEST_A:
        reasons.append(f"interval too wide: a = {law.a:.3f}, 95 % interval {low:.3f} to {high:.3f}")
    if not reasons and (edge := optimum_at_edge(result)):
        reasons.append(edge)
    return reasons


def optimum_at_edge(result):
    """The law's best size must lie among the sizes that were tried, at most budgets; else it is extrapolation."""
    table, law = result.table, result.law
    c = np.log(table.C)
    per = np.median(table.C / (table.N * table.D))
    outside, budgets, side = 0, 0, ""
    for level in np.linspace(*np.quantile(c, [0.1, 0.9]), 9):
        near = table.N[np.abs(c - level) < np.log(2)]
        if len(near) < 2:
            continue
        budgets += 1
        best = law.optimum(np.exp(level), per)[0]
        if not near.min() < best < near.max():
            outside += 1
            side = "smallest" if best <= near.min() else "largest"
    if budgets and 2 * outside > budgets:
        return (f"optimum at the edge: at {outside} of {budgets} budgets the best size lies beyond the {side} that was "
                f"tried; add {'smaller' if side == 'smallest' else 'larger'} models")
    return None


def jackknife(problem, law, N):
    """a with each size left out in turn: how much the exponent depends on one size."""
    groups = sizes(N)
    weights = np.ones((len(groups), len(N)))
    for row, rows in zip(weights, groups):
        row[rows] = 0
    return refit(problem, law, weights)[0].a


def convention(table, key, label, delta):
    """The fit under one count of N: how far a moves when one size is left out says how stable it is."""
    counted = table if key == "N" else table.with_sizes(key)
    law, objective, problem = fit(counted.N, counted.D, counted.loss, delta)
    others = jackknife(problem, law, counted.N)
    row = {"key": key, "name": label, "alpha": float(law.alpha), "beta": float(law.beta), "a": float(law.a),
           "objective": objective, "a_without_one_size": [float(others.min()), float(others.max())],
           "instability": float(np.max(np.abs(others - law.a))), "most_stable": False}
    row["approach_2"] = {"C = 6 N D": approaches(counted)["2"]["a"]}
    if "C_counted" in table.extra:
        own = counted.keep(np.ones(len(counted), dtype=bool))
        own.C = np.array(table.extra["C_counted"], dtype=float)
        row["approach_2"]["C with attention and head"] = approaches(own)["2"]["a"]
    return row


def seed_noise(table):
    """Standard deviation of log L among runs of the same N and D (repeated seeds), or None."""
    groups = {}
    for N, D, loss in zip(table.N, table.D, table.loss):
        groups.setdefault((N, D), []).append(np.log(loss))
    spread = [(len(g) - 1, np.var(g, ddof=1)) for g in groups.values() if len(g) > 1]
    degrees = sum(k for k, _ in spread)
    return float(np.sqrt(sum(k * v for k, v in spread) / degrees)) if degrees else None


def analyse(table, delta=DELTA, samples=1000, seed=1):
    """The Result for a table. Raises SweepError where no fit can be tried; other doubts are in .reasons."""
    if reason := check_grid(table):
        raise SweepError(f"no exponents from this grid: {reason}")
    law, objective, problem = fit(table.N, table.D, table.loss, delta)
    result = Result(table, law, objective, problem, bootstrap(problem, law, samples, seed), delta)
    result.reasons = check_fit(result)
    if "aspect" in table.extra:
        refined, batch, gain = refine(table, law, delta, samples, seed)
        if refined:
            result.predictor, result.predictors, result.gain = refined, batch, gain
    result.approaches = approaches(table)
    result.noise = seed_noise(table)
    if "N_body" in table.extra:
        result.conventions = [convention(table, key, label, delta) for key, label in CONVENTIONS
                              if key == "N" or key in table.extra]
        min(result.conventions, key=lambda row: row["instability"])["most_stable"] = True
    return result


def show(result, out=sys.stdout):
    v = result.as_dict()
    print(f"L(N, D) = E + A / N^alpha + B / D^beta over {v['runs']} runs, Huber delta {v['delta']:g}: "
          f"objective {v['objective']:.9e}", file=out)
    for name in (*NAMES, "a", "b"):
        low, high = v["intervals"][name]
        print(f"  {name:<6}{v[name]:>12.6g}   95 % {low:.5g} to {high:.5g}   standard error "
              f"{v['standard_errors'][name]:.3g}", file=out)
    print(f"  N_opt ~ C^a, D_opt ~ C^b (approach 3); {v['bootstrap_samples']} bootstrap samples of the runs", file=out)
    for name, what in (("1", "envelope"), ("2", "IsoFLOP parabolas")):
        row = result.approaches[name]
        if row["a"] is None:
            text = f"not from these runs ({len(row['points'])} budgets with an optimum inside the grid)"
        else:
            span = row["interval"] and f"   95 % {row['interval'][0]:.3f} to {row['interval'][1]:.3f}"
            text = f"a = {row['a']:.4f}{span or ''}   ({len(row['points'])} budgets)"
        print(f"approach {name}, {what}: {text}", file=out)
    print(f"scatter of log L about the law: {100 * v['scatter']:.2f} %"
          + (f"; between seeds: {100 * v['noise']:.2f} %" if v["noise"] is not None else ""), file=out)
    for row in result.conventions:
        low, high = row["a_without_one_size"]
        print(f"N of {row['name']:<16} a = {row['a']:.4f}, {low:.3f} to {high:.3f} with one size left out"
              + ("   <- the most stable" if row["most_stable"] else ""), file=out)


def command(arguments):
    from .table import read_table

    table = read_table(arguments.file, arguments.column).drop_highest(arguments.drop_highest)
    as_json = arguments.format == "json"
    try:
        result = analyse(table, arguments.delta, arguments.bootstrap, arguments.seed)
        if result.reasons:
            raise SweepError("no exponents from this grid: " + "; ".join(result.reasons))
    except SweepError as error:
        if as_json:
            print(json.dumps({"refused": str(error)}))
        raise
    if as_json:
        print(json.dumps(result.as_dict(), indent=2))
    else:
        show(result)
