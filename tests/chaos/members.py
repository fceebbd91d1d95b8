"""The nine processes of ksync that are put to the test: three candidates of each kind."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from clock import RIGHT
from held import held
from world import DELAY_SECS
from world import SESSION_SECS
from world import TOPIC

HERE = Path(__file__).resolve().parent
# What it writes down has to be by the right clock, also where that of the process that starts it is wrong.
PYTHON = [*RIGHT, sys.executable, "-I", "-S"]
KINDS = ("index", "cache", "delayer")
EACH = 3
NAMES = tuple(f"{kind}-{number}" for kind in KINDS for number in range(1, EACH + 1))
# Of a soak: neither killed nor restarted.
SPARED = tuple(f"{kind}-1" for kind in KINDS)
GRACE_SECS = 12
WATCH_SECS = 0.2
# A watch that comes so late tells that the machine has too much to do.
STALL_SECS = 0.5


def environment(world, clock=None):
    """With a mark, so that what is left of any process can be found; and with the clock of that name, if there is one."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KSYNC_")}
    if world.mutant:
        env["KSYNC_MUTANT"] = world.mutant
    if clock in world.clocks:
        env |= world.clocks[clock].environment()
    return {**env, "KSYNC_CONFIG": "/dev/null", "KSYNC_BOOTSTRAP_SERVER": world.kafka, "CHAOS_RUN": str(world.folder)}


class Member:
    """A place for a process, which is filled again after each of its deaths."""

    def __init__(self, world, binaries, proxy, kind, number):
        self.world, self.proxy, self.kind = world, proxy, kind
        self.name = f"{kind}-{number}"
        self.command = [*command(world, binaries, kind), "--zookeeper", proxy.addresses]
        if kind != "delayer":
            worker = ["--worker"] if kind == "cache" else []
            handler = [*PYTHON, HERE / "handler.py", world.history, world.postgres, world.seed, *worker]
            self.command += [*worker, "--", *map(str, handler)]
        # One fault after the other.
        self.lock = threading.RLock()
        self.process = None
        self.is_wanted = False

    @property
    def pid(self):
        return self.process.pid

    def start(self):
        with self.lock:
            with open(self.world.logs / f"{self.name}.log", "ab") as log:
                outputs = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
                self.process = subprocess.Popen(self.command, env=environment(self.world, self.name), **outputs)
            self.is_wanted = True
            self.world.journal.add("started", member=self.name, pid=self.pid)

    def kill(self):
        with self.lock:
            self.is_wanted = False
            self.process.kill()
            self.process.wait(timeout=10)

    def signal(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ask_to_end(self):
        with self.lock:
            self.is_wanted = False
            self.process.terminate()

    def status_at_its_end(self):
        """Kills it if that takes too long; then None."""
        with self.lock:
            try:
                return self.process.wait(timeout=GRACE_SECS + 5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)
                return None

    def has_ended_by_itself(self):
        with self.lock:
            return self.is_wanted and self.process.poll() is not None


def command(world, binaries, kind):
    tool = "delayer" if kind == "delayer" else "consume"
    common = [binaries / f"ksync-{tool}", "-t", TOPIC, "--session-timeout", f"{SESSION_SECS}s"]
    common += ["--grace", f"{GRACE_SECS}s"]
    if kind == "delayer":
        return [*map(str, common), "--delay", f"{DELAY_SECS}s"]
    batches = ["--batch-size", str(world.batch_size), "--batch-wait", "500ms"]
    # One failure after the other must not halt a partition for long, nor cut a batch into pieces: then the order of
    # the first successes would not be that of the offsets.
    failures = ["--timeout", "5s", "--retry-pause", "300ms", "--retry-pause-max", "2s", "--isolate-after", "1000000"]
    return [*map(str, common), "-n", kind, *batches, *failures]


class Members:
    """All of them, and a watch over those that end by themselves."""

    def __init__(self, world, binaries, proxies, spares):
        """With `spares` the first of each kind lives to the end, so that it can be seen whether it grows."""
        targets = [node.ports["client"] for node in world.zookeepers]
        self.world = world
        self.all = [
            Member(world, binaries, proxies.open(targets), kind, number)
            for kind in KINDS for number in range(1, EACH + 1)
        ]
        self.mortal = [member for member in self.all if not (spares and member.name in SPARED)]
        self.ended = threading.Event()

    def mortal_of(self, kind):
        return [member for member in self.mortal if member.kind == kind]

    def start(self):
        for member in self.all:
            member.start()
        for watch in (self.watch, self.watch_stalls):
            threading.Thread(target=watch, daemon=True).start()

    def watch(self):
        while not self.ended.wait(WATCH_SECS):
            for member in self.all:
                if member.has_ended_by_itself():
                    self.world.journal.add("ended by itself", member=member.name, status=member.process.returncode)
                    member.start()

    def watch_stalls(self):
        """In a thread of its own: the other one also waits for members that a fault has locked."""
        since = time.monotonic()
        while not self.ended.wait(WATCH_SECS):
            secs = time.monotonic() - since
            if secs > STALL_SECS:
                self.world.journal.add("stalled", secs=round(secs, 1))
            since = time.monotonic()

    def sample(self, pause_secs):
        while not self.ended.wait(pause_secs):
            self.measure("sample")

    def heal(self):
        for member in self.all:
            member.proxy.heal()
            member.signal(signal.SIGCONT)
            with member.lock:
                if member.process.poll() is not None:
                    member.start()

    def end(self):
        """A clean end of all, each with its exit status in the journal."""
        self.ended.set()
        for member in self.all:
            member.signal(signal.SIGCONT)
            # Once: a second one would mean that it is to end in the middle of its batch.
            member.ask_to_end()
        for member in self.all:
            self.world.journal.add("ended", member=member.name, status=member.status_at_its_end())

    def kill(self):
        self.ended.set()
        for member in self.all:
            if member.process and member.process.poll() is None:
                member.kill()

    def measure(self, when):
        """Writes down what each of them holds of the system."""
        brokers = {node.ports["client"] for node in self.world.brokers}
        for member in self.all:
            # It may end meanwhile, and be without memory then.
            with contextlib.suppress(OSError, KeyError):
                pid = member.pid
                self.world.journal.add("measured", when=when, member=member.name, pid=pid, **held(pid, brokers))


def strays(world):
    """Processes that are left of members that have ended: those of their sessions, and those that carry our mark."""
    sessions = {note["pid"] for note in world.noted("started")}
    mark = f"CHAOS_RUN={world.folder}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            is_ours = int(fields[3]) in sessions or mark in (folder / "environ").read_bytes().split(b"\0")
            if is_ours and fields[0] not in "ZX":
                command_line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{folder.name} {command_line}")
    return found
