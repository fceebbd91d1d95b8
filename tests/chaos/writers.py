"""The application: writers that change rows through the real ksync-stream, and sometimes roll back, dawdle or die."""

import base64
import contextlib
import dataclasses
import random
import signal
import subprocess
import threading
import time

from members import HERE
from members import PYTHON
from members import environment
from world import DELAY_SECS
from world import KEYS
from world import TOPIC

COUNT = 16
PAUSE_SECS = 5
RUN_LIMIT_SECS = 120
# A number that does not stay what it is in a parser that knows doubles only.
PAYLOAD = '{{"id":{id},"op":{op},"n":123456789012345678901{more}}}\n'
# More than a topic takes, after compression too.
TOO_LARGE = 1_500_000
# One writer in so many has a short queue for its messages, in which there often is no room.
SHORT_QUEUES = 4


@dataclasses.dataclass
class Run:
    """One call of ksync-stream; each chunk is a transaction, and its number in `plan` says how it ends."""

    rows: int
    plan: list
    killed_after_secs: float

    @classmethod
    def small(cls, rng):
        plan = [dawdling(rng, "commits") for _ in range(rng.randint(1, 6))]
        # The run ends with a transaction that fails, so it is the last one.
        if rng.random() < 0.1 * len(plan):
            plan[-1] = dawdling(rng, "rolls-back")
        elif rng.random() < 0.04:
            plan[-1] = dawdling(rng, rng.choice(["dies", "orphans"]))
        elif rng.random() < 0.03:
            plan[-1] = "too-large"
        return cls(rng.randint(1, 50), plan, killing(rng))

    @classmethod
    def bulk(cls, rng, most_rows):
        return cls(rng.randint(most_rows // 2, most_rows), ["commits"] * rng.randint(1, 4), killing(rng))


def dawdling(rng, end):
    """One in twenty is as long as half of the delay, or twice as long as it."""
    return f"{end}:{rng.uniform(0.5, 2) * DELAY_SECS:.1f}" if rng.random() < 0.05 else end


def padding(rng):
    return f',"pad":"{base64.b64encode(rng.randbytes(TOO_LARGE)).decode()}"'


def killing(rng):
    return rng.uniform(0, 1) if rng.random() < 0.02 else RUN_LIMIT_SECS


class Writers:
    """Keep to a pace: whoever finds that the rows are behind it makes a run of many."""

    def __init__(self, world, binaries, rows, secs, most_rows):
        self.world, self.most_rows = world, most_rows
        self.rows_wanted, self.secs, self.begun = rows, secs, time.monotonic()
        self.command = [str(binaries / "ksync-stream"), "-", "-t", TOPIC, "--delay", f"{DELAY_SECS}s", "-q", "--chunk-wait", "60s"]
        self.action = [*PYTHON, str(HERE / "action.py"), str(world.history), world.postgres]
        self.lock = threading.Lock()
        self.rows, self.next_op = 0, 0
        self.running = set()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.write, args=(number,)) for number in range(COUNT)]
        for thread in self.threads:
            thread.start()

    def write(self, number):
        rng = random.Random(f"{self.world.seed} writer {number}")
        while not self.ended.wait(0 if self.is_behind() else rng.expovariate(1 / PAUSE_SECS)):
            run = Run.bulk(rng, self.most_rows) if self.is_behind() else Run.small(rng)
            self.run(run, rng, ["-X", "queue.buffering.max.messages=100"] if number % SHORT_QUEUES == 0 else [])

    def is_behind(self):
        share = min(1, (time.monotonic() - self.begun) / self.secs)
        return self.rows < self.rows_wanted * share

    def run(self, run, rng, options):
        with self.lock:
            # So that the number of an operation, modulo the length of the plan, is that of its chunk.
            first = -(-self.next_op // len(run.plan)) * len(run.plan)
            self.next_op = first + len(run.plan)
            self.rows += run.rows * len(run.plan)
        lines = "".join(
            PAYLOAD.format(id=id, op=first + number, more=padding(rng) if row == 0 and end == "too-large" else "")
            for number, end in enumerate(run.plan) for row, id in enumerate(rng.sample(range(1, KEYS + 1), run.rows))
        )
        command = [*self.command, *options, "--chunk-size", str(run.rows), "--", *self.action, *run.plan]
        with open(self.world.logs / "streams.log", "ab") as log:
            outputs = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log, "start_new_session": True}
            process = subprocess.Popen(command, env=environment(self.world, "writers"), **outputs)
        self.running.add(process)
        begun = time.time()
        try:
            process.communicate(lines.encode(), timeout=run.killed_after_secs)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)
        self.running.discard(process)
        known = {"first": first, "plan": run.plan, "rows": run.rows, "begun": begun}
        self.world.journal.add("wrote", status=process.returncode, **known)

    def kill(self):
        """Kills those that are at work."""
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)

    def end(self, limit_secs):
        """Lets the runs under way come to their ends."""
        self.ended.set()
        deadline = time.monotonic() + limit_secs
        for thread in self.threads:
            thread.join(max(0, deadline - time.monotonic()))
        self.kill()
        for thread in self.threads:
            thread.join(10)
