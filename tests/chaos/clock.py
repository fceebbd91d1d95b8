"""Wall clocks that are wrong, each for some processes alone. Their other clocks stay as they are."""

import struct
import subprocess
import threading
from pathlib import Path

from world import Failure

SOURCE = Path(__file__).resolve().parents[1] / "c" / "clock.c"
# Begins the command of a process that is started by one with such a clock, and has none itself.
RIGHT = ["env", "-u", "LD_PRELOAD", "-u", "CLOCK"]


def clocks(names, folder, journal):
    """One for each name, with their files in this folder."""
    library = folder / "clock.so"
    if names and subprocess.run(["cc", "-O2", "-shared", "-fPIC", SOURCE, "-o", library]).returncode != 0:
        raise Failure(f"cannot build {SOURCE.name}")
    return {name: Clock(library, folder / f"{name}.clock", name, journal) for name in names}


class Clock:
    """It is right at first."""

    def __init__(self, library, file, name, journal):
        self.library, self.file, self.name, self.journal = library, file, name, journal
        # One fault after the other.
        self.lock = threading.Lock()
        file.write_bytes(nanoseconds(0))

    def set(self, ahead_secs):
        """From now on it is so many seconds ahead, or behind."""
        # In place: whoever sees the file has it mapped.
        with open(self.file, "r+b", buffering=0) as file:
            file.write(nanoseconds(ahead_secs))
        self.journal.add("clock", of=self.name, ahead_secs=ahead_secs)

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "CLOCK": str(self.file)}


def nanoseconds(secs):
    return struct.pack("=q", round(secs * 1e9))


def right_times(shown, settings, slack=0.5):
    """When the lines of a log were written that have these times by a clock that was set so: [(when, seconds ahead)]."""
    ends = [at for at, _ in settings[1:]] + [float("inf")]
    latest = 0.0
    for time in shown:
        fitting = (time - ahead for (at, ahead), end in zip(settings, ends) if at - slack <= time - ahead <= end + slack)
        # The lines are in their order, so of several times it is the first one that is not before the line above.
        latest = min((at for at in fitting if at >= latest - slack), default=latest)
        yield latest
