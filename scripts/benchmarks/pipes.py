"""Runs a program, or a pipe of programs, and measures what that takes."""

import contextlib
import dataclasses
import os
import re
import select
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from programs import Failure
from programs import last_lines

# Our options in the environment of whoever calls are not what is measured.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("KSYNC_")}
POLL_SECS = 0.05
LIMIT_SECS = 900


@dataclasses.dataclass
class Run:
    """What one run of a program, or of a pipe of programs, took."""

    seconds: float
    cpu_seconds: float
    peak_kib: int


def run(*commands, until=None, statuses=(0,), stdin=subprocess.DEVNULL, log=None):
    """Runs a pipe of commands to its end; or until `until()`, which then counts as the end, and gives it a TERM.

    It may have ended by itself by then. Each ends with one of these exit statuses.

    What the commands write to stderr goes to `log`, a file, if somebody wants to read it.
    """
    with contextlib.ExitStack() as files:
        log = log or files.enter_context(tempfile.TemporaryFile("w+"))
        begun, processes = time.monotonic(), []
        try:
            for command in commands:
                stdout = subprocess.DEVNULL if command is commands[-1] else subprocess.PIPE
                process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=log, env=ENVIRONMENT)
                processes.append(process)
                if len(processes) > 1:
                    stdin.close()  # else the process before would not see this one end
                stdin = process.stdout
            return watch(processes, begun, until, statuses)
        except Failure as failure:
            log.seek(0)
            pipe = " | ".join(shlex.join(map(str, command)) for command in commands)
            raise Failure(f"{failure}\n  {pipe}\n{last_lines(log.read(), 10)}") from None
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    process.wait()


def watch(processes, begun, until, statuses):
    alive = {os.pidfd_open(process.pid): process for process in processes}
    peaks, cpu_seconds, seconds = {}, 0, None
    while alive:
        for process in alive.values():
            # Not ru_maxrss, which begins with what the parent had at the fork.
            status = Path(f"/proc/{process.pid}/status").read_text()
            if peak := re.search(r"^VmHWM:\s+(\d+)", status, re.MULTILINE):
                peaks[process.pid] = int(peak[1])
        if until and not seconds and until():
            seconds = time.monotonic() - begun
            # Not terminate(), which takes the exit status of one that has just ended by itself.
            os.kill(processes[0].pid, signal.SIGTERM)
        for ended in select.select(list(alive), [], [], POLL_SECS)[0]:
            process = alive.pop(ended)
            os.close(ended)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if until and not seconds and until():
                seconds = time.monotonic() - begun  # it has ended by itself meanwhile
            if process.returncode not in statuses or (until and not seconds):
                raise Failure(f"{process.args[0]} ended with exit status {process.returncode}")
            # With those children that the process has waited for: handlers.
            cpu_seconds += usage.ru_utime + usage.ru_stime
        if time.monotonic() - begun > LIMIT_SECS:
            raise Failure(f"no end after {LIMIT_SECS} s")
    return Run(seconds or time.monotonic() - begun, cpu_seconds, sum(peaks.values()))
