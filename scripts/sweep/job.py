"""One run on one slot: begun, branched off or resumed, then evaluated. An interrupted run can always be continued."""
import json
import os
import shutil
import signal

from . import SweepError
from .shapes import flags, shared_batch
from .store import Lock, read_json, result_of, run_path, write_json


def whole_checkpoints(path):
    """Steps of a run's checkpoints, ascending. trainer.json is written last and names the files' sizes."""
    steps = []
    try:
        names = os.listdir(os.path.join(path, "checkpoints"))
    except FileNotFoundError:
        return []
    for name in names:
        place = os.path.join(path, "checkpoints", name)
        try:
            files = read_json(os.path.join(place, "trainer.json"), {}).get("files", {})
            whole = files and all(os.path.getsize(os.path.join(place, f)) == size for f, size in files.items())
        except (OSError, SweepError):
            whole = False
        if name.isdigit() and whole:
            steps.append(int(name))
    return sorted(steps)


def last_line(path):
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - 4096))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def last_entry(path):
    """The newest whole line of a run's log, or {}."""
    try:
        with open(os.path.join(path, "log.jsonl"), "rb") as file:
            file.seek(max(0, os.path.getsize(file.name) - 2048))
            lines = file.read().decode().splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in reversed(lines):
        try:
            return json.loads(line)
        except ValueError:
            continue
    return {}


def branch_off(trunk, step, path):
    """Gives a new run the trunk's checkpoint as its own. The files are linked, not copied, since no program writes into them."""
    source, place = (os.path.join(p, "checkpoints", str(step)) for p in (trunk, path))
    temporary = os.path.join(path, "branch.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary, copy_function=os.link)
    except (OSError, shutil.Error):  # a file system without hard links
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.rename(temporary, place)


def train_command(binary, setting, run, threads, out="."):
    """The command that makes this run from the start. Values that it does not name follow the binary's own rules."""
    c = run["config"]
    ranks, batch = shared_batch(c.get("ranks", 1), c["step_tokens"] // c["context"], c["context"])
    given = flags(data=setting["tokens"], out=out, layers=c["layers"], channels=c["channels"], heads=c["heads"],
                  context=c["context"], batch=batch, ranks=ranks if ranks > 1 else None, total_batch_tokens=c["step_tokens"], steps=c["steps"],
                  schedule="wsd", warmup=c["warmup"], optimizer=c["optimizer"], lr=c["lr"],
                  weight_decay=c["weight_decay"], beta2=c["beta2"], seed=c["seed"], eval_every=0, sample_every=0,
                  save_every=run["save_every"], keep_last=0, threads=threads or None)
    return [binary, "train", *given, *setting["machine_flags"]]


class Job:
    """A run in progress. `poll()` advances it and returns its state: running, done, failed, stopped, or busy (another process
    has the run)."""

    def __init__(self, directory, plan, run, binary, slot, threads):
        self.directory, self.setting, self.run = directory, plan["setting"], run
        self.binary, self.slot, self.threads = binary, slot, threads
        self.path = run_path(directory, run)
        self.output = os.path.join(self.path, "output.txt")
        self.measured = os.path.join(self.path, "evaluation.json")
        self.process, self.stage, self.stopping = None, "", False

    def begin(self):
        os.makedirs(self.path, exist_ok=True)
        self.lock = Lock(os.path.join(self.path, "lock"))
        if not self.lock.take():
            self.lock.close()
            return False
        write_json(os.path.join(self.path, "run.json"), self.run)
        for name in ("failed.json", "output.txt"):
            if os.path.exists(os.path.join(self.path, name)):
                os.remove(os.path.join(self.path, name))
        self.train()
        return True

    def train(self):
        have, steps = whole_checkpoints(self.path), self.run["config"]["steps"]
        if steps in have:
            return self.evaluate()
        if not have and self.run["parent"]:
            trunk = os.path.join(self.directory, "runs", self.run["parent"])
            if self.run["branch_step"] in whole_checkpoints(trunk):
                branch_off(trunk, self.run["branch_step"], self.path)
                have = [self.run["branch_step"]]
        out = os.path.relpath(self.path, self.directory)
        if have:
            interval = self.run["save_every"] if not self.run["parent"] else max(1, steps // 20)
            command = [self.binary, "train", "--resume", *self.setting["machine_flags"],
                       *flags(out=out, steps=steps, save_every=interval, ranks=self.ranks(),
                              threads=self.threads or None)]
        else:
            command = train_command(self.binary, self.setting, self.run, self.threads, out)
        self.start("train", command)

    def ranks(self):
        c = self.run["config"]
        ranks, _ = shared_batch(c.get("ranks", 1), c["step_tokens"] // c["context"], c["context"])
        return ranks if ranks > 1 else None

    def evaluate(self):
        out = os.path.join(os.path.relpath(self.path, self.directory), "checkpoints", str(self.run["config"]["steps"]))
        given = flags(data=self.setting["tokens"], batches=self.setting["eval_batches"], format="json",
                      threads=self.threads or None)
        self.start("evaluate", [self.binary, "eval", out, *given, *self.setting["machine_flags"]])

    def start(self, stage, command):
        self.stage = stage
        self.process = self.slot.start(command, self.directory, self.output, (self.lock.file.fileno(),),
                                       self.measured if stage == "evaluate" else None)

    def stop(self):
        self.stopping = True
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def poll(self):
        status = self.process.poll()
        if status is None:
            return "running"
        if self.stopping:
            return self.end("stopped")
        if status:
            what = last_line(self.output) or f"ended with status {status}"
            return self.fail(status, what)
        if self.stage == "train":
            if self.run["config"]["steps"] not in whole_checkpoints(self.path):
                return self.end("stopped")  # a signal from elsewhere made it save and end
            self.evaluate()
            return "running"
        try:
            measured = read_json(self.measured)
            loss = float(measured["loss"])
        except (SweepError, TypeError, ValueError, KeyError):
            return self.fail(status, "the evaluation printed no loss")
        state = read_json(os.path.join(self.path, "checkpoints", str(self.run["config"]["steps"]), "trainer.json"), {})
        write_json(os.path.join(self.path, "result.json"),
                   {"loss": loss, "bits_per_byte": measured.get("bits_per_byte"), "eval_tokens": measured["tokens"],
                    "seconds": state.get("seconds")})
        return self.end("done")

    def fail(self, status, message):
        write_json(os.path.join(self.path, "failed.json"), {"status": status, "message": message})
        return self.end("failed")

    def end(self, state):
        self.lock.close()
        return state


def prune(directory, run, runs):
    """Removes all checkpoints but the newest two and those where unfinished branches begin."""
    path = run_path(directory, run)
    steps = whole_checkpoints(path)
    needed = {r["branch_step"] for r in runs if r["parent"] == run["name"] and not result_of(directory, r)}
    spare = steps[:-1] if result_of(directory, run) else steps[:-2]
    for step in spare:
        if step not in needed:
            shutil.rmtree(os.path.join(path, "checkpoints", str(step)), ignore_errors=True)
