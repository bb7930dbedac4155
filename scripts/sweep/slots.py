"""Where binaries run side by side: each slot is some cores or one GPU. The processes end with this one."""
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
    def __init__(self, cores=None, gpu=None):
        self.cores, self.gpu = cores, gpu

    def __str__(self):
        return f"GPU {self.gpu}" if self.gpu is not None else "core " + ",".join(map(str, self.cores))

    def start(self, command, directory, output, keep_open=(), result=None):
        """Starts a process whose two streams are appended to the file `output`; where `result` is named, standard output goes there."""
        environment = dict(os.environ)
        if self.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(self.gpu)

        def prepare():
            end_with_parent()
            if self.cores:
                os.sched_setaffinity(0, self.cores)

        with open(output, "ab") as file, open(result or output, "wb" if result else "ab") as results:
            return subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=results, stderr=file,
                                    env=environment, preexec_fn=prepare, pass_fds=keep_open, start_new_session=True)


def make_slots(jobs, gpus):
    """(slots, threads of each). Without --jobs: a process for each core, at most 8, since small models scale badly."""
    if gpus:
        return [Slot(gpu=gpu) for gpu in gpus], 0
    cores = sorted(os.sched_getaffinity(0))
    jobs = jobs or min(len(cores), 8)
    if jobs > len(cores):
        raise SweepError(f"--jobs {jobs} is more than the {len(cores)} cores there are", 2)
    each = len(cores) // jobs
    return [Slot(cores=cores[i * each:(i + 1) * each]) for i in range(jobs)], each
