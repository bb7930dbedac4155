"""The files of a sweep's directory: plan.json, tokens/, runs/NAME/, the table. Each is written whole or not at all."""
import csv
import fcntl
import io
import json
import os

from . import SweepError

FORMAT = 3  # of plan.json and of the configurations in it
COLUMNS = ("name", "kind", "params", "params_body", "tokens", "flops", "flops_counted", "loss", "bits_per_byte",
           "layers", "channels", "steps", "step_tokens", "learning_rate", "seed", "trunk")


def write_whole(path, text):
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path, otherwise=None):
    """The object in a JSON file; `otherwise` where there is none. A damaged file is an error."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return otherwise
    except (OSError, ValueError) as error:
        raise SweepError(f"cannot read {path}: {error}")


def write_json(path, value):
    write_whole(path, json.dumps(value, indent=1) + "\n")


def read_plan(directory):
    plan = read_json(os.path.join(directory, "plan.json"))
    if plan is None:
        raise SweepError(f"{directory} holds no plan: make one with sweep.py plan --data DATA --budget 30min "
                         f"--out {directory}")
    if plan.get("format") != FORMAT:
        raise SweepError(f"{directory}/plan.json is of another version of sweep.py: plan again with --out {directory}; "
                         f"finished runs that the new plan has too are kept")
    return plan


class Lock:
    """An exclusive lock on a file; its descriptor may be handed to a child, which then holds it too."""

    def __init__(self, path):
        self.file = open(path, "a")

    def take(self, wait=False):
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            return False

    def close(self):
        self.file.close()


def run_path(directory, run):
    return os.path.join(directory, "runs", run["name"])


def result_of(directory, run):
    """{"loss", ...} of a finished run, or None."""
    return read_json(os.path.join(run_path(directory, run), "result.json"))


def table_rows(directory, plan):
    """The finished runs in the plan's order, then those of the tests; without times, so that the same sweep gives the same
    table."""
    rows = []
    for run in [*plan["runs"], *plan.get("tests", [])]:
        result = result_of(directory, run)
        if result is None:
            continue
        c = run["config"]
        rows.append({"name": run["name"], "kind": run["kind"], "params": run["N"], "params_body": run["N_body"],
                     "tokens": run["tokens"], "flops": run["flops"], "flops_counted": run["flops_counted"],
                     "loss": result["loss"], "bits_per_byte": result.get("bits_per_byte", ""), "layers": c["layers"],
                     "channels": c["channels"], "steps": c["steps"], "step_tokens": c["step_tokens"],
                     "learning_rate": c["lr"], "seed": c["seed"], "trunk": run["parent"] or run["name"]})
    return rows


def table_text(rows):
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def write_tables(directory, plan):
    rows = table_rows(directory, plan)
    write_whole(os.path.join(directory, "table.csv"), table_text(rows))
    return rows
