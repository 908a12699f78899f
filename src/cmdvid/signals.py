"""The signals by which a scheduler ends a job: noted here, acted on between batches.

Imports nothing heavy, for it has to come first: SIGUSR1 ends a process that has no handler for it,
and importing torch takes seconds.
"""

import os
import signal
from enum import IntEnum

PREEMPTIBLE = "CMDVID_PREEMPTIBLE"  # set it to listen under another scheduler than Slurm


class Notice(IntEnum):
    """What was announced; of several the greatest counts."""

    NONE = 0
    STOP = 1  # SIGTERM: scancel, scontrol requeue; whether the job runs again is not our business
    AGAIN = 2  # SIGUSR1: time limit, or preemption where the site sends it; run the job again

    @property
    def exit_code(self) -> int:
        """75 (EX_TEMPFAIL) asks the batch script for another run."""
        return {Notice.NONE: 0, Notice.STOP: 128 + signal.SIGTERM, Notice.AGAIN: 75}[self]


class Listener:
    """Takes a note of signals and does nothing else: a handler runs between any two bytecodes."""

    def __init__(self) -> None:
        self.noted, self.pid = Notice.NONE, 0

    @property
    def listening(self) -> bool:
        """Whether anybody should look at the note."""
        return self.pid != 0

    def listen(self) -> None:
        """Install the handlers, in the main process and again where a library replaced them."""
        self.pid = os.getpid()
        signal.signal(signal.SIGUSR1, self._note)
        signal.signal(signal.SIGTERM, self._note)

    def ignore(self) -> None:
        """Ignore the signals from here on: all is saved, or nothing is left to save.

        Not the default handlers: a signal during Python's shutdown, which takes seconds with torch,
        would turn a finished job into a failed one, and what waits for it would be cancelled.
        """
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def stop(self) -> None:
        """Let the signals end the process again: it has failed, and may hang while it ends."""
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def ignore_in_worker(self, _: int) -> None:
        """Let workers of a loader live until the batch is over: Slurm signals them too."""
        if self.listening:
            self.ignore()

    def _note(self, number: int, _: object) -> None:
        if os.getpid() == self.pid:  # not in a forked worker
            notice = Notice.AGAIN if number == signal.SIGUSR1 else Notice.STOP
            self.noted = max(self.noted, notice)


LISTENER = Listener()


def expected() -> bool:
    """Whether a scheduler may send signals to this process."""
    return "SLURM_JOB_ID" in os.environ or PREEMPTIBLE in os.environ
