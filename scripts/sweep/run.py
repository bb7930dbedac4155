"""`sweep run`: makes the plan's runs, several side by side. Finished ones are skipped, interrupted ones resumed."""
import os
import shutil
import signal
import sys
import time

from . import SweepError
from .grid import saved_flops
from .job import Job, last_entry, prune, whole_checkpoints
from .plan import find_binary, plan_speed
from .slots import planned_slots
from .shapes import duration
from .store import Lock, read_json, read_plan, result_of, run_path, write_tables

POLL_SECONDS = 0.2
PRUNE_SECONDS = 5


class Stop(Exception):
    pass


class Board:
    """The live table: redrawn in place on a terminal; elsewhere a line whenever a run changes its state."""

    def __init__(self, directory, runs, speed, slots, eval_tokens):
        self.directory, self.runs, self.speed = directory, runs, speed
        self.slots, self.eval_tokens = slots, eval_tokens
        self.live = sys.stderr.isatty()
        self.drawn, self.at = 0, 0.0

    def seconds_left(self, run, done_steps):
        steps = run["config"]["steps"]
        return self.speed.seconds(run["N"], max(0, steps - done_steps), run["config"]["step_tokens"], self.eval_tokens)

    def say(self, text):
        self.clear()
        print(text, file=sys.stderr, flush=True)

    def clear(self):
        if self.drawn:
            sys.stderr.write(f"\x1b[{self.drawn}A\x1b[J")
            self.drawn = 0

    def draw(self, states, force=False):
        if not self.live or (not force and time.monotonic() - self.at < 0.5):
            return
        self.at = time.monotonic()
        width, height = shutil.get_terminal_size()
        lines, left = [], 0.0
        for run in self.runs:
            state, steps = states[run["name"]], run["config"]["steps"]
            text = ""
            if state == "done":
                text = f"loss {result_of(self.directory, run)['loss']:.4f}"
            elif state == "running":
                entry = last_entry(run_path(self.directory, run))
                step = entry.get("step", run["branch_step"])
                seconds = self.seconds_left(run, step)
                left += seconds
                text = f"step {step}/{steps}  loss {entry.get('loss') or float('nan'):.3f}  {duration(seconds)} left"
            elif state != "failed":
                left += self.seconds_left(run, run["branch_step"])
            lines.append((state, f"  {run['name']:<34}{state:<9}{text}"[:width - 1]))
        counts = {s: sum(state == s for state, _ in lines) for s in ("done", "running", "waiting", "failed")}
        # Lines that do not fit on the screen are left out: those of finished runs first, then those of waiting ones.
        for gone in ("done", "waiting"):
            while len(lines) > height - 3 and any(state == gone for state, _ in lines):
                lines.remove(next(line for line in lines if line[0] == gone))
        head = (", ".join(f"{n} {'left' if s == 'waiting' else s}" for s, n in counts.items())
                + f"; about {duration(left / self.slots)} to go")
        self.clear()
        text = [head, *(line for _, line in lines)][:height - 1]
        sys.stderr.write("\n".join(text) + "\n")
        sys.stderr.flush()
        self.drawn = len(text)


def initial_state(directory, run):
    return "done" if result_of(directory, run) else "waiting"


def ready(directory, run, states):
    """Whether a run can begin. A branch waits for its trunk's checkpoint; where that will not come any more, it trains from the
    start."""
    if not run["parent"] or states.get(run["parent"]) in ("failed", "done", None):
        return True
    path = os.path.join(directory, "runs", run["parent"])
    return bool(whole_checkpoints(run_path(directory, run))) or run["branch_step"] in whole_checkpoints(path)


def execute(directory, plan, runs, binary, slots, threads):
    """Makes all of `runs`. Returns {name: done | failed}. Raises Stop when a signal ended it (everything is saved)."""
    speed = plan_speed(plan)
    board = Board(directory, runs, speed, len(slots), plan["setting"]["eval_tokens"])
    states = {run["name"]: initial_state(directory, run) for run in runs}
    # Trunks come first, the longest first of all: the other runs then fill the gaps at the end.
    order = sorted(runs, key=lambda r: (r["parent"] is not None, -board.seconds_left(r, 0)))
    jobs, free, asked, pruned = [], list(slots), [], time.monotonic()
    earlier = {s: signal.signal(s, lambda number, frame: asked.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    skipped = sum(state == "done" for state in states.values())
    if skipped:
        board.say(f"{skipped} of {len(runs)} runs are finished already")
    try:
        while jobs or any(state == "waiting" for state in states.values()):
            if asked:
                raise Stop
            for run in order:
                if free and states[run["name"]] == "waiting" and ready(directory, run, states):
                    job = Job(directory, plan, run, binary, free[0], threads)
                    try:
                        if not job.begin():
                            continue  # the training of a killed sweep is still running
                    except OSError as error:
                        raise SweepError(f"cannot start {run['name']}: {error.strerror or error}")
                    free.pop(0)
                    jobs.append(job)
                    states[run["name"]] = "running"
            for job in list(jobs):
                state = job.poll()
                if state == "running":
                    continue
                jobs.remove(job)
                free.append(job.slot)
                states[job.run["name"]] = "waiting" if state == "stopped" else state
                finish(directory, plan, job, state, board, states)
            if time.monotonic() - pruned > PRUNE_SECONDS:
                for job in jobs:
                    prune(directory, job.run, runs)
                pruned = time.monotonic()
            board.draw(states)
            if jobs or any(state == "waiting" for state in states.values()):
                time.sleep(POLL_SECONDS)
        board.draw(states, force=True)
        return states
    finally:
        for job in jobs:
            job.stop()
        for job in jobs:
            job.process.wait()
        for number, handler in earlier.items():
            signal.signal(number, handler)


def finish(directory, plan, job, state, board, states):
    run = job.run
    if state == "done":
        board.say(f"{run['name']}: loss {result_of(directory, run)['loss']:.4f}")
        write_tables(directory, plan)
        everything = [*plan["runs"], *plan.get("tests", [])]
        for other in everything:
            if run["name"] == other["name"] or run["parent"] == other["name"]:
                prune(directory, other, everything)
    elif state == "failed":
        board.say(f"{run['name']} failed: {read_json(os.path.join(job.path, 'failed.json'))['message']}")


def own_the_sweep(directory):
    lock = Lock(os.path.join(directory, "lock"))
    if not lock.take():
        raise SweepError(f"another sweep is at work in {directory}")
    return lock


def end_of(states):
    failed = [name for name, state in states.items() if state == "failed"]
    if failed:
        raise SweepError(f"{len(failed)} of {len(states)} runs failed ({', '.join(failed[:3])}"
                         f"{', ...' if len(failed) > 3 else ''}): the reason is in failed.json in the run's directory; "
                         f"the same command tries them again")


def command(arguments):
    directory = os.path.abspath(arguments.out)
    plan = read_plan(directory)
    binary = find_binary(arguments.binary)
    lock = own_the_sweep(directory)
    slots, threads = planned_slots(arguments.jobs, plan["setting"])
    runs = plan["runs"]
    alone, shared = saved_flops(runs)
    print(f"{len(runs)} runs, {shared:.3g} FLOPs; branches save {100 * (1 - shared / alone):.0f} % of {alone:.3g}; "
          f"{len(slots)} side by side: {', '.join(map(str, slots))}", file=sys.stderr)
    try:
        states = execute(directory, plan, runs, binary, slots, threads)
    except Stop:
        raise SweepError(f"stopped: sweep.py run --out {arguments.out} goes on")
    finally:
        lock.close()
    write_tables(directory, plan)
    end_of(states)
    print(f"all {len(runs)} runs are done: {os.path.join(arguments.out, 'table.csv')}; "
          f"next: scripts/sweep.py {'test' if plan['setting']['holdout'] else 'report'} --out {arguments.out}")
