"""What has to halt a consumer: a topic that was made again, records that have expired unread, one that is not JSON.

Each in a topic of its own, with a consumer of its own, once all else has settled.
"""

import json
import signal
import socket
import subprocess
import time

from members import environment
from wire import kafka_create_topic
from wire import kafka_delete_records
from wire import kafka_delete_topic
from world import Failure
from world import REPLICAS
from world import eventually
from world import kcat
from world import zookeeper_texts

FIRST, MORE, EXPIRED = 20, 40, 50
LIMIT_SECS = 40
# In which a broker answers a fetch that is under way, also one that stands still for a while.
ANSWER_SECS = 3
# Longer than a process is stopped here: it has to find out by itself, not by leading anew.
SESSION_SECS = 20


class Consumer:
    """Of one topic, which is called as its group."""

    def __init__(self, world, binaries, name):
        self.world, self.name, self.topic = world, name, f"chaos-{name}"
        self.lines, self.log = world.history / f"{name}.lines", world.logs / f"{name}.log"
        servers = ",".join(f"127.0.0.1:{node.ports['client']}" for node in world.zookeepers)
        self.command = [str(binaries / "ksync-consume"), "-t", self.topic, "-n", name, "--zookeeper", servers,
                        "--session-timeout", f"{SESSION_SECS}s", "--", "sh", "-c", 'cat >>"$0"', str(self.lines)]
        self.process = None

    def make_topic(self):
        port = self.world.brokers[0].ports["client"]
        settings = [("min.insync.replicas", "2")]
        eventually(f"{self.topic} is made", 20, lambda: kafka_create_topic(port, self.topic, REPLICAS, 1, settings))
        eventually(f"all brokers know {self.topic}", 20, lambda: all(self.listed()))

    def delete_topic(self):
        if not kafka_delete_topic(self.world.brokers[0].ports["client"], self.topic):
            raise Failure(f"cannot delete {self.topic}")
        eventually(f"no broker knows {self.topic}", 20, lambda: not any(self.listed()))

    def listed(self):
        """By each broker."""
        for node in self.world.brokers:
            text = kcat(node, "-L", "-t", self.topic).stdout
            yield f'topic "{self.topic}"' in text and "Unknown topic" not in text and "not available" not in text

    def write(self, values):
        done = kcat(self.world.brokers[0], "-P", "-t", self.topic, "-p", "0", input="".join(f"{it}\n" for it in values))
        if done.returncode != 0:
            raise Failure(f"cannot write to {self.topic}: {done.stderr}")

    def expire(self, before):
        for node in self.world.brokers:
            with socket.create_connection(("127.0.0.1", node.ports["client"]), timeout=10) as connection:
                if kafka_delete_records(connection, self.topic, before):
                    return
        raise Failure(f"cannot delete records of {self.topic}")

    def start(self):
        with open(self.log, "ab") as log:
            outputs = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.process = subprocess.Popen(self.command, env=environment(self.world), **outputs)

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(timeout=10)

    def given(self):
        if not self.lines.exists():
            return []
        return [json.loads(line)["offset"] for line in self.lines.read_text().splitlines()]

    def committed(self):
        path = f"/kafka_sync/consumer/{self.topic}/0/{self.name}/offset"
        (text,) = zookeeper_texts(self.world.zookeepers[0].ports["client"], [path])
        return int(text or 0)

    def is_done(self, offset):
        return self.given() == list(range(offset)) and self.committed() == offset

    def has_halted(self):
        return "halted" in self.log.read_text()


def halts(world, binaries):
    """Writes down of each whether it has halted, and where."""
    again, expired, invalid = consumers = [Consumer(world, binaries, name) for name in ("again", "expired", "not-json")]
    try:
        for consumer in consumers:
            consumer.make_topic()
            consumer.write(['{"life":1}'] * FIRST)
            consumer.start()
        wait_for(lambda: all(consumer.is_done(FIRST) for consumer in consumers))
        again.end()
        again.delete_topic()
        again.make_topic()
        again.write(['{"life":2}'] * (FIRST + MORE))
        again.start()
        expired.process.send_signal(signal.SIGSTOP)
        # Else the answer would have the records that are to expire.
        time.sleep(ANSWER_SECS)
        expired.write(['{"life":1}'] * MORE)
        expired.expire(EXPIRED)
        expired.process.send_signal(signal.SIGCONT)
        invalid.write(["{oops", *['{"life":1}'] * MORE])
        wait_for(lambda: all(consumer.has_halted() for consumer in consumers))
        time.sleep(0.5)
        for consumer in consumers:
            note = {"topic": consumer.topic, "due": FIRST, "has_halted": consumer.has_halted()}
            world.journal.add("halts", given=consumer.given(), committed=consumer.committed(), **note)
    finally:
        for consumer in consumers:
            consumer.end()


def wait_for(is_true):
    """Or for the limit: what did not come is for the checker to find."""
    deadline = time.monotonic() + LIMIT_SECS
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.1)
