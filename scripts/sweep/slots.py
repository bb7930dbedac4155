"""Where binaries run side by side: each slot is some cores or some GPUs. The processes end with this one."""
import ctypes
import os
import signal
import subprocess

from . import SweepError

PR_SET_PDEATHSIG = 1


def end_with_parent():
    """Called in the child: when the sweep is killed, its trainings get SIGTERM, so that they save and stop."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    except (OSError, AttributeError):
        pass  # not Linux: the run's lock still keeps two processes out of one directory


class Slot:
    def __init__(self, cores=None, gpus=None):
        self.cores, self.gpus = cores, gpus

    def __str__(self):
        return "GPU " + ",".join(self.gpus) if self.gpus else "core " + ",".join(map(str, self.cores))

    def start(self, command, directory, output, keep_open=(), result=None):
        """Starts a process whose two streams are appended to the file `output`; where `result` is named, standard output goes there."""
        environment = dict(os.environ)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus)

        def prepare():
            end_with_parent()
            if self.cores:
                os.sched_setaffinity(0, self.cores)

        with open(output, "ab") as file, open(result or output, "wb" if result else "ab") as results:
            return subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=results, stderr=file,
                                    env=environment, preexec_fn=prepare, pass_fds=keep_open, start_new_session=True)


def make_slots(jobs, gpus, ranks=1):
    """(slots, threads of each rank). A slot has `ranks` GPUs, or cores for so many ranks. Without --jobs: a process for each core
    of its ranks, at most 8, since small models scale badly."""
    if gpus:
        if len(gpus) % ranks:
            raise SweepError(f"--ranks {ranks} does not divide the {len(gpus)} GPUs of --gpus", 2)
        return [Slot(gpus=gpus[i:i + ranks]) for i in range(0, len(gpus), ranks)], 0
    cores = sorted(os.sched_getaffinity(0))
    if ranks > len(cores):
        raise SweepError(f"--ranks {ranks} is more than the {len(cores)} cores there are", 2)
    jobs = jobs or min(len(cores) // ranks, 8)
    if jobs * ranks > len(cores):
        raise SweepError(f"--jobs {jobs}{f' of {ranks} ranks' if ranks > 1 else ''} is more than the {len(cores)} cores there are", 2)
    each = len(cores) // jobs
    return [Slot(cores=cores[i * each:(i + 1) * each]) for i in range(jobs)], each // ranks


def planned_slots(jobs, setting):
    """make_slots() as the plan has them, or with `jobs` others; fewer where this machine has fewer cores."""
    ranks = setting.get("ranks", 1)
    most = max(1, len(os.sched_getaffinity(0)) // ranks)
    return make_slots(jobs or min(setting["slots"], most), setting["gpus"], ranks)
