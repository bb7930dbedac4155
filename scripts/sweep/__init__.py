"""The parts of scripts/sweep.py: from a budget to a scaling law and a tested prediction. See README.md here."""


class SweepError(Exception):
    """What went wrong, in one line; `status` is the process's exit status (2: a wrong command line)."""

    def __init__(self, message, status=1):
        super().__init__(message)
        self.status = status
