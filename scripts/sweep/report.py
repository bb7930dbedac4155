"""`sweep report`: one HTML file that holds everything; beside it each plot as PNG and SVG, the data as CSV and JSON."""
import base64
import html
import os
import shlex

from . import SweepError
from .ask import analyse_sweep, outcome, sweep_table
from .fit import analyse
from .job import train_command
from .law import NAMES
from .shapes import duration, short
from .store import COLUMNS, read_json, read_plan, result_of, table_rows, table_text, write_json, write_whole

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse;font-size:.85rem}
td,th{padding:.15rem .6rem;text-align:right;border-bottom:1px solid #e4e4e4;white-space:nowrap}
td:first-child,th:first-child{text-align:left}
img{max-width:100%}code,pre{font-size:.82rem;background:#f5f5f5}pre{padding:.6rem;overflow-x:auto}.wide{overflow-x:auto}
.no{color:#a00}"""


def table(header, rows):
    head = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>\n{body}</table></div>\n"


def law_section(result):
    v = result.as_dict()
    rows = [(name, f"{v[name]:.5g}", "{:.4g} to {:.4g}".format(*v["intervals"][name]),
             f"{v['standard_errors'][name]:.2g}")
            for name in (*NAMES, "a", "b")]
    text = (f"<p>L(N, D) = E + A / N<sup>alpha</sup> + B / D<sup>beta</sup> over {v['runs']} runs (Hoffmann et al. "
            f"2022, approach 3; Huber loss on log L, delta {v['delta']:g}; intervals from {v['bootstrap_samples']} "
            f"bootstrap samples over the runs). The best size at a budget C is N ~ C<sup>a</sup>, the best token count "
            f"D ~ C<sup>b</sup>. Scatter of log L about the law: {100 * v['scatter']:.2f} %"
            + (f"; between seeds: {100 * v['noise']:.2f} %" if v["noise"] is not None else "") + ".</p>")
    text += table(("", "value", "95 % interval", "standard error"), rows)
    text += refined_section(v)
    rows = [(f"{name}: {what}", "-" if row["a"] is None else f"{row['a']:.3f}",
             "{:.3f} to {:.3f}".format(*row["interval"]) if row["interval"] else "-", len(row["points"]))
            for name, what in (("1", "envelope"), ("2", "IsoFLOP parabolas")) for row in [v["approaches"][name]]]
    text += "<h2>Approaches 1 and 2</h2>" + table(("approach", "a", "95 % interval", "budgets"), rows)
    if v["conventions"]:
        rows = [(row["name"] + (" (the most stable)" if row["most_stable"] else ""), f"{row['a']:.3f}",
                 "{:.3f} to {:.3f}".format(*row["a_without_one_size"]), f"{row['alpha']:.3f}", f"{row['beta']:.3f}",
                 *("-" if a is None else f"{a:.3f}" for a in row["approach_2"].values())) for row in v["conventions"]]
        heads = [f"approach 2, {name}" for name in v["conventions"][0]["approach_2"]]
        text += "<h2>Ways to count</h2>" + table(("N of", "a", "with one size left out", "alpha", "beta", *heads), rows)
    return text


def refined_section(v):
    r = v.get("refined")
    if not r:
        return ""
    text = (f"<h2>The law that predictions come from</h2><p>L(N, D) = (E + ((A / N<sup>alpha</sup>)<sup>kappa</sup> + (B / "
            f"D<sup>beta</sup>)<sup>kappa</sup>)<sup>1/kappa</sup>) r<sup>gamma</sup>, where r is a shape's channels a layer over "
            f"the usual. kappa = 1 and gamma = 0 give the law above; kappa = 1/beta is that of Kaplan et al. 2020, eq. 1.5. These "
            f"runs ask for it: its Bayesian information criterion (Schwarz 1978) is lower by {r['information_gain']:.0f}, its "
            f"scatter {100 * r['scatter']:.2f} %. The curves of all plots are its.</p>")
    return text + table(("", "value", "95 % interval"),
                        [(name, f"{r[name]:.5g}", "{:.4g} to {:.4g}".format(*r["intervals"][name])) for name in r["intervals"]])


def test_section(tested):
    rows = [(row["name"], short(row["params"]), short(row["tokens"]), f"{row['predicted']:.4f}",
             "{:.4f} to {:.4f}".format(*row["interval"]), f"{row['measured']:.4f}", f"{100 * row['error']:+.2f} %",
             "inside" if row["inside"] else "outside") for row in tested["runs"]]
    text = (f"<h2>The prediction, tested</h2><p>Written down before the run was made, from runs of at most "
            f"{tested['fitted_up_to']:.3g} FLOPs; the held-out budget is {tested['compute']:.3g}, "
            f"{tested['compute'] / tested['fitted_up_to']:.1f} times as much.</p>")
    text += table(("run", "params", "tokens", "predicted", "95 % interval", "measured", "error", "interval"), rows)
    if best := tested["best_params_measured"]:
        text += (f"<p>Best size: predicted {short(tested['best_params_predicted'])}, measured "
                 + (short(best["params"]) if best["inside"] else "at the edge of the sizes that were tried") + ".</p>")
    return text


def runs_section(rows, results):
    lines = [(row["name"], row["kind"], short(row["params"]), short(row["tokens"]),
              f"{row['tokens'] / row['params']:.3g}", f"{row['flops']:.2e}", f"{row['loss']:.4f}", row["layers"],
              row["channels"], row["steps"], f"{row['learning_rate']:.3g}", row["seed"],
              duration(results[row["name"]].get("seconds") or 0)) for row in rows]
    return "<h2>Runs</h2>" + table(("run", "kind", "params", "tokens", "D/N", "FLOPs", "loss", "layers", "channels",
                                    "steps", "lr", "seed", "time"), lines)


def commands_section(arguments, plan):
    setting = plan["setting"]
    kind, amount = next(iter(plan["budget"].items()))
    budget = f"{amount:.3g}" if kind == "flops" else f"{amount:.0f}s"
    steps = [f"scripts/sweep.py plan --data {shlex.quote(setting['data'])} --budget {budget} --span {setting['span']:g} "
             f"--context {setting['context']} --out {arguments.out}", *(f"scripts/sweep.py {c} --out {arguments.out}" for c in
                                                              ("run", "test", "report"))]
    trunks = [run for run in [*plan["runs"], *plan["tests"]] if not run["parent"]]
    each = [shlex.join(train_command("train_gpt", {**setting, "machine_flags": []}, run, 0, f"runs/{run['name']}"))
            for run in trunks]
    return ("<h2>Commands</h2><pre>" + html.escape("\n".join(steps)) + "</pre><details><summary>The trunks (run in the "
            "sweep's directory). A branch is a trunk's checkpoint at 4/5 of its steps, gone on with by --resume "
            "--steps.</summary><pre>" + html.escape("\n".join(each)) + "</pre></details>")


def command(arguments):
    from . import plots

    directory = os.path.abspath(arguments.out)
    plan = read_plan(directory)
    refused = None
    try:
        result = analyse_sweep(directory, plan)
    except SweepError as error:
        refused = str(error)
        result = analyse(sweep_table(directory, plan))  # throws where there is nothing to draw
    prediction = read_json(os.path.join(directory, "prediction.json"))
    tested = prediction and outcome(directory, prediction)
    out = os.path.join(directory, "report")
    os.makedirs(out, exist_ok=True)
    unit = "nats a token"
    figures = {"isoflop": ("IsoFLOP curves", plots.isoflop(result, unit)),
               "curves": ("Runs", plots.curves(result, unit)),
               "residuals": ("Residuals", plots.residuals(result))}
    if not refused:
        figures["frontier"] = ("Frontier", plots.frontier(result, unit, tested))
        figures["optimum"] = ("Best size and token count", plots.optimum(result, tested))
    for name, (_, figure) in figures.items():
        plots.save(figure, os.path.join(out, name))

    rows = table_rows(directory, plan)
    results = {row["name"]: read_json(os.path.join(directory, "runs", row["name"], "result.json")) for row in rows}
    write_whole(os.path.join(out, "runs.csv"), table_text(rows))
    write_json(os.path.join(out, "report.json"),
               {"fit": None if refused else result.as_dict(), "refused": refused, "test": tested,
                "columns": list(COLUMNS),
                "runs": [{**row, "seconds": results[row["name"]]["seconds"]} for row in rows]})

    def picture(name):
        with open(os.path.join(out, name + ".svg"), "rb") as file:
            data = base64.b64encode(file.read()).decode()
        return f'<h2>{figures[name][0]}</h2><img alt="{figures[name][0]}" src="data:image/svg+xml;base64,{data}">\n'

    total = sum(r["seconds"] or 0 for r in results.values())
    missing = sum(result_of(directory, run) is None for run in plan["runs"])
    parts = [f"<!doctype html><html lang=en><meta charset=utf-8><title>Scaling law</title><style>{STYLE}</style>"
             f"<h1>Scaling law of {html.escape(os.path.basename(plan['setting']['data']))}</h1>"
             f"<p>{len(rows)} runs of {short(min(r['params'] for r in rows))} to "
             f"{short(max(r['params'] for r in rows))} parameters, {min(r['flops'] for r in rows):.2g} to "
             f"{max(r['flops'] for r in rows):.2g} FLOPs; "
             f"{duration(total)} of training.{f' {missing} runs of the plan are missing.' if missing else ''}</p>"]
    parts += [f"<p class=no>{html.escape(refused)}</p>"] if refused else [law_section(result)]
    parts += [test_section(tested)] if tested else []
    parts += [picture(name) for name in ("isoflop", "frontier", "optimum", "curves", "residuals") if name in figures]
    parts += [runs_section(rows, results), commands_section(arguments, plan), "</html>\n"]
    write_whole(os.path.join(out, "index.html"), "\n".join(parts))
    if refused:
        print(f"note: {refused}")
    print(f"{os.path.join(arguments.out, 'report', 'index.html')}; beside it {', '.join(figures)} as .png and .svg, "
          f"runs.csv and report.json")
