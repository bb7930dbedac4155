"""`sweep ask`: what to train with a budget, by the law of a sweep; `sweep test`: whether the law was right."""
import json
import os
import shlex
import subprocess
import sys

import numpy as np

from . import SweepError
from .approaches import parabola
from .fit import analyse, seed_noise
from .grid import holdout_runs, shape_of
from .law import DELTA, interval
from .plan import find_binary
from .run import Stop, end_of, execute, own_the_sweep
from .shapes import OPTIMIZER, Shape, flags, micro_batch, rates, shape_for, short, step_tokens
from .slots import Slot, planned_slots
from .store import read_json, read_plan, result_of, run_path, table_rows, write_json, write_tables
from .table import Table

# Dense bf16 peaks, FLOP/s, of the vendor's data sheets.
GPUS = {"h100": 989e12, "h200": 989e12, "a100": 312e12, "b200": 2250e12, "l40s": 362e12, "rtx4090": 165e12}
EFFICIENT = 1.345  # standard deviations; 95 % as precise as least squares with normal noise (Holland, Welsch 1977)
FAR = 1000  # times the largest fitted compute: beyond it an interval from the scatter of runs says too little


def sweep_table(directory, plan, kinds=("grid", "repeat")):
    """The table that the law is fitted to, which never holds the test's runs."""
    rows = [row for row in table_rows(directory, plan) if row["kind"] in kinds]
    if not rows:
        raise SweepError(f"no run of {directory} is finished yet: sweep.py run --out {directory}")

    def column(name):
        return np.array([row[name] for row in rows], dtype=float)

    extra = {"N_body": column("params_body"), "C_counted": column("flops_counted"), "name": [r["name"] for r in rows],
             "aspect": [Shape(row["layers"], row["channels"]).aspect for row in rows]}
    return Table(column("params"), column("tokens"), column("loss"), column("flops"), extra)


def analyse_sweep(directory, plan, samples=1000):
    """The law of the sweep's runs. The Huber loss's delta comes from the noise between seeds: with the papers' 1e-3, which is far
    less than that noise, the loss would be the absolute error, which needs half as many runs again for the same precision."""
    table = sweep_table(directory, plan)
    result = analyse(table, max(DELTA, EFFICIENT * (seed_noise(table) or 0)), samples)
    if result.reasons:
        raise SweepError("no exponents from this grid: " + "; ".join(result.reasons))
    return result


def answer(result, C, setting):
    """What to train with C FLOPs (6 N D) and what to expect."""
    vocabulary, context = setting["vocabulary"], setting["context"]
    best, _ = result.predictor.optimum(C)
    shape = shape_for(best, vocabulary)
    N = shape.parameters(vocabulary)
    step = step_tokens(C / 6 / N, context)
    steps = max(1, round(C / 6 / N / step))
    D = steps * step
    sizes, tokens = result.predictors.optimum(C)
    return {"compute": C, "params": N, "params_optimal": float(best), "params_interval": interval(sizes), "tokens": D,
            "tokens_interval": interval(tokens), "tokens_per_parameter": D / N, "layers": shape.layers,
            "channels": shape.channels, "heads": shape.heads, "batch_tokens": step, "steps": steps,
            "learning_rate": rates(steps, step)["lr"], "loss": float(result.predictor.loss(N, D, shape.aspect)),
            "loss_interval": result.loss_interval(N, D, shape.aspect), "beyond_largest_run": float(C / result.table.C.max()),
            "command": shlex.join(["train_gpt", "train", "--data", setting["data"], *shape.flags(),
                                   *flags(context=context, batch=micro_batch(step, context), total_batch_tokens=step,
                                          tokens=D, schedule="wsd", optimizer=OPTIMIZER)])}


def show_answer(v, setting):
    low, high = v["params_interval"]
    print(f"compute       {v['compute']:.3g} FLOPs (6 N D), {v['beyond_largest_run']:.3g} times the fit's largest run")
    print(f"parameters    {short(v['params'])}: {v['layers']} layers, {v['channels']} channels, {v['heads']} heads "
          f"(the law's best size {short(v['params_optimal'])}, 95 % {short(low)} to {short(high)})")
    low, high = v["tokens_interval"]
    print(f"tokens        {short(v['tokens'])}, {v['tokens_per_parameter']:.3g} a parameter "
          f"(95 % {short(low)} to {short(high)}); {v['tokens'] / setting['train_tokens']:.2g} times the sweep's text")
    print(f"batch         {short(v['batch_tokens'])} tokens a step, {v['steps']} steps; learning rate "
          f"{v['learning_rate']:.3g} (in units of the base model)")
    low, high = v["loss_interval"]
    print(f"loss          {v['loss']:.4f} nats a token, 95 % {low:.4f} to {high:.4f}")
    if v["beyond_largest_run"] > FAR:
        print(f"note: more than {FAR} times beyond the fitted runs; the interval knows only their scatter, not whether "
              f"the law goes on")
    if v["tokens"] > 4 * setting["train_tokens"]:
        print("note: the sweep's text would be read more than 4 times; find more (Muennighoff et al. 2023)")
    print(f"\n{v['command']}")


def compute_of(arguments):
    if (arguments.compute is None) == (arguments.gpus is None):
        raise SweepError("ask needs --compute FLOPS, or --gpus with --hours", 2)
    if arguments.compute is not None:
        return arguments.compute
    if arguments.hours is None:
        raise SweepError("--gpus needs --hours", 2)
    return arguments.gpus * arguments.hours * 3600 * GPUS[arguments.gpu] * arguments.mfu


def best_layout(arguments, v, setting):
    """The fastest plan of `train_gpt plan` for the model of an answer."""
    batch = max(v["batch_tokens"], arguments.gpus * setting["context"])
    said = [find_binary(arguments.binary), "plan", *Shape(v["layers"], v["channels"]).flags(), "--vocabulary",
            str(setting["vocabulary"]), "--context", str(setting["context"]), "--gpus", str(arguments.gpus), "--hardware",
            arguments.hardware, "--hours", str(arguments.hours), "--global-batch-tokens", str(batch), "--optimizer", OPTIMIZER,
            "--format", "json"]
    done = subprocess.run(said, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SweepError(done.stderr.strip(), 2)
    return json.loads(done.stdout)["plans"][0]


def planned_answer(arguments, result, setting):
    """The answer for what the ranks can train in the time, which depends on the model, and so on the answer."""
    C = 1e15 * arguments.gpus * arguments.hours
    for _ in range(8):
        v = answer(result, C, setting)
        layout = best_layout(arguments, v, setting)
        before, C = C, 6 * v["params"] * layout["tokens_per_second"] * arguments.hours * 3600
        if abs(C / before - 1) < 0.05:
            break
    v["plan"] = layout
    v["command"] = layout["command"].replace("--data tokens/", "--data " + shlex.quote(setting["data"]))
    return v


def command(arguments):
    directory = os.path.abspath(arguments.out)
    plan = read_plan(directory)
    if arguments.hardware:
        if arguments.gpus is None or arguments.hours is None:
            raise SweepError("--hardware needs --gpus and --hours", 2)
        v = planned_answer(arguments, analyse_sweep(directory, plan), plan["setting"])
    else:
        v = answer(analyse_sweep(directory, plan), compute_of(arguments), plan["setting"])
    if arguments.format == "json":
        return print(json.dumps(v, indent=2))
    if arguments.hardware:
        print(f"{arguments.gpus} x {arguments.hardware} for {arguments.hours:g} hours: {v['plan']['step_ms']['total']:.0f} ms a "
              f"step, {short(v['plan']['tokens_per_second'])} tokens/s, MFU {100 * v['plan']['mfu']:.0f} % (train_gpt plan)")
    elif arguments.gpus:
        print(f"{arguments.gpus} x {arguments.gpu} for {arguments.hours:g} hours at {100 * arguments.mfu:.0f} % of "
              f"{GPUS[arguments.gpu] / 1e12:.0f} TFLOP/s (bf16, dense)")
    show_answer(v, plan["setting"])


def predict(directory, plan):
    """The prediction for the held-out budget, written down before its runs are made. It stays as it is, unless the
    sweep was planned anew."""
    path = os.path.join(directory, "prediction.json")
    names = [run["name"] for run in plan["runs"]]
    earlier = read_json(path)
    if earlier is not None and earlier["planned"] == names:
        return earlier
    missing = [run for run in plan["runs"] if not result_of(directory, run)
               and not os.path.exists(os.path.join(run_path(directory, run), "failed.json"))]
    if missing:
        raise SweepError(f"{len(missing)} of {len(plan['runs'])} runs are not finished: sweep.py run first")
    result = analyse_sweep(directory, plan)
    setting = plan["setting"]
    C = plan["holdout_flops"]
    best = float(result.predictor.optimum(C)[0])
    runs = holdout_runs(setting, C, best, setting["holdout_sizes"])
    prediction = {"planned": names, "compute": C, "fitted_up_to": float(result.table.C.max()),
                  "law": result.predictor.as_dict(), "best_params": best,
                  "best_params_interval": interval(result.predictors.optimum(C)[0]), "runs": runs,
                  "losses": {r["name"]: {"loss": float(result.predictor.loss(r["N"], r["tokens"], shape_of(r).aspect)),
                                         "interval": result.loss_interval(r["N"], r["tokens"], shape_of(r).aspect)}
                             for r in runs}}
    write_json(path, prediction)
    return prediction


def test_command(arguments):
    directory = os.path.abspath(arguments.out)
    plan = read_plan(directory)
    if not plan["setting"]["holdout"]:
        raise SweepError("this plan holds nothing out: plan again with --holdout 8")
    binary = find_binary(arguments.binary)
    lock = own_the_sweep(directory)
    prediction = predict(directory, plan)
    runs = prediction["runs"]
    low, high = prediction["best_params_interval"]
    C, best = prediction["compute"], prediction["best_params"]
    print(f"held out: {C:.3g} FLOPs, {C / prediction['fitted_up_to']:.1f} times the largest fitted run; best size "
          f"predicted {short(best)} (95 % {short(low)} to {short(high)})")
    for run in runs:
        p = prediction["losses"][run["name"]]
        print(f"  {run['name']}: predicted {p['loss']:.4f}, 95 % {p['interval'][0]:.4f} to {p['interval'][1]:.4f}")
    sys.stdout.flush()
    if plan["tests"] != runs:
        plan["tests"] = runs
        write_json(os.path.join(directory, "plan.json"), plan)
    gpus = plan["setting"]["gpus"]
    slots, threads = planned_slots(arguments.jobs, plan["setting"])
    if len(runs) == 1 and not gpus:  # a single run gets all cores; its bits are the same for any number of threads
        cores = [core for slot in slots for core in slot.cores]
        slots, threads = [Slot(cores=cores)], len(cores) // plan["setting"].get("ranks", 1)
    try:
        end_of(execute(directory, plan, runs, binary, slots, threads))
    except Stop:
        raise SweepError(f"stopped: sweep.py test --out {arguments.out} goes on")
    finally:
        lock.close()
    write_tables(directory, plan)
    show_outcome(outcome(directory, prediction))


def outcome(directory, prediction):
    """The prediction beside what was measured; None while a run is missing."""
    rows = []
    for run in prediction["runs"]:
        measured = result_of(directory, run)
        if measured is None:
            return None
        p = prediction["losses"][run["name"]]
        rows.append({"name": run["name"], "params": run["N"], "tokens": run["tokens"], "predicted": p["loss"],
                     "interval": p["interval"], "measured": measured["loss"],
                     "error": measured["loss"] / p["loss"] - 1,
                     "inside": p["interval"][0] <= measured["loss"] <= p["interval"][1]})
    best = None
    if len(rows) >= 3:
        best, _, inside, _ = parabola(np.array([r["params"] for r in rows]), np.array([r["measured"] for r in rows]))
        best = {"params": best, "inside": inside}
    return {"compute": prediction["compute"], "fitted_up_to": prediction["fitted_up_to"], "runs": rows,
            "best_params_predicted": prediction["best_params"], "best_params_measured": best}


def show_outcome(v):
    print("predicted against measured:")
    for row in v["runs"]:
        low, high = row["interval"]
        print(f"  {row['name']}: predicted {row['predicted']:.4f} ({low:.4f} to {high:.4f}), measured "
              f"{row['measured']:.4f}: {100 * row['error']:+.2f} %, "
              f"{'inside' if row['inside'] else 'outside'} its interval")
    if v["best_params_measured"]:
        m = v["best_params_measured"]
        print(f"  best size: predicted {short(v['best_params_predicted'])}, measured "
              + (short(m["params"]) if m["inside"] else "at the edge of the sizes that were tried, near "
                 + short(m["params"])))
