"""(i): for how long a partition has no leader: after its leader was killed, and after it was asked to end."""

import random
import re
import signal
import subprocess
import tempfile
import time
from datetime import datetime

from bench import say
from pipes import ENVIRONMENT
from programs import Failure

PARTITIONS = 20
KILLS = 200
SESSION_SECS = 4
QUEUES = re.compile(r"queueing as ")
LEADS = re.compile(r"(\S+)Z ksync-consume info: .* leading from offset ")
# Signal, its name, and what 99 % of the times are to be below.
ENDS = [(signal.SIGKILL, "SIGKILL", SESSION_SECS + 1.0), (signal.SIGTERM, "SIGTERM", 0.1)]


def failover(bench):
    bench.pour("failover", PARTITIONS, (f'{i}|{{"id":{i}}}' for i in range(PARTITIONS)), PARTITIONS)
    title = f"(i) {KILLS} kills of leaders, session timeout {SESSION_SECS} s"
    print(f"\n{title:60} {'median':>10} {'99 %':>10} {'most':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for number, name, limit in ENDS:
            took = sorted(Failover(bench, folder).kill(number))
            median, most_of, most = took[len(took) // 2], took[len(took) * 99 // 100], took[-1]
            print(f"  {f'until the next one leads, after {name}':58} {median:8.3f} s {most_of:8.3f} s {most:8.3f} s", flush=True)
            bench.hold_to(f"(i) after {name}: 99 % within {limit} s", f"{most_of:.3f} s", most_of <= limit)


class Failover:
    """A leader and a standby for each partition."""

    def __init__(self, bench, folder):
        self.command = bench.consume("failover", ["cat"], "--session-timeout", f"{SESSION_SECS}s", log="-v")
        self.folder = folder
        self.candidates = []

    def kill(self, number):
        """The seconds until the next one led, for each of the kills."""
        choice, took = random.Random(7), []
        try:
            leading = [self.start(partition) for partition in range(PARTITIONS)]
            for candidate in leading:
                candidate.wait_for(LEADS)
            standing_by = [self.start(partition) for partition in range(PARTITIONS)]
            while len(took) < KILLS:
                for candidate in standing_by:
                    candidate.wait_for(QUEUES)
                time.sleep(SESSION_SECS / 10)  # each waits for its predecessor by now
                took += self.kill_all(number, leading, standing_by, choice)
                say(f"{len(took)} kills by signal {number}, the slowest {max(took):.3f} s")
                leading, standing_by = standing_by, [self.start(partition) for partition in range(PARTITIONS)]
        finally:
            for candidate in self.candidates:
                candidate.end()
        return took

    def kill_all(self, number, leading, standing_by, choice):
        killed = []
        for candidate in leading:
            time.sleep(choice.random() / 10)
            killed.append(time.time())
            candidate.process.send_signal(number)
        return [heir.wait_for(LEADS) - moment for heir, moment in zip(standing_by, killed)]

    def start(self, partition):
        candidate = Candidate(self.command, partition, self.folder)
        self.candidates.append(candidate)
        return candidate


class Candidate:
    def __init__(self, command, partition, folder):
        self.log = tempfile.TemporaryFile("w+", dir=folder)
        at = command.index("--")
        line = [*command[:at], "-p", str(partition), *command[at:]]
        self.process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stderr=self.log, env=ENVIRONMENT)

    def wait_for(self, pattern):
        """When it said so, in seconds since 1970."""
        for _ in range(3000):
            self.log.seek(0)
            for line in self.log:
                if found := pattern.search(line):
                    return datetime.fromisoformat(f"{found[1]}+00:00").timestamp() if pattern.groups else None
            time.sleep(0.01)
        raise Failure(f"{self.process.args} has not said '{pattern.pattern}' in 30 s")

    def end(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
