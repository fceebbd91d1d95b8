"""What all parts of scripts/bench stand on: servers, topics with records, and how ksync is called."""

import itertools
import random
import socket
import subprocess
import sys
import time

from pipes import ENVIRONMENT
from pipes import run
from programs import Failure
from wire import kafka_create_topic
from wire import kafka_delete_topic
from wire import kafka_end_offset

# How long payloads are, and what the table says of it; None: as short as can be.
SIZES = {"small": (None, 'like 7: {"id":7}'), "wide": (200, "of 200 bytes")}
# Two programs one after the other, so that each run of it costs more than the work on its batch.
HANDLER = ["sh", "-c", "cat >/dev/null"]
NOISE = "".join(random.Random(7).choices("abcdefghijklmnopqrstuvwxyz     ", k=5000)) * 2


class Bench:
    def __init__(self, options, servers, examples):
        self.options = options
        self.kafka = servers["KSYNC_BOOTSTRAP_SERVER"]
        self.zookeeper = servers["KSYNC_ZOOKEEPER"]
        self.postgres = servers.get("KSYNC_TEST_POSTGRES")
        self.examples = examples
        self.port = int(self.kafka.rpartition(":")[2])
        self.numbers = itertools.count(1)
        self.verdicts = []
        # What is promised, and is not so.
        self.broken = []

    def ksync(self, tool, *arguments, log="-q"):
        command = [self.options.binaries / f"ksync-{tool}", "--config", "/dev/null", log, "-b", self.kafka]
        if tool != "stream":
            # Where nobody has led yet, so that each run begins at the beginning.
            command += ["--zookeeper", f"{self.zookeeper}/run{next(self.numbers)}"]
        return [*command, *arguments]

    def consume(self, topic, handler, *arguments, log="-q"):
        return self.ksync("consume", "-t", topic, "-n", "bench", *arguments, "--", *handler, log=log)

    def read(self, topic, *arguments):
        return ["kcat", "-q", "-b", self.kafka, "-C", "-e", "-o", "beginning", "-p", "0", "-t", topic, *arguments]

    def write(self, topic, *arguments):
        return ["kcat", "-q", "-b", self.kafka, "-P", "-K", "|", "-t", topic, *arguments]

    def connection(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def ends(self, topic, partitions=1):
        with self.connection() as connection:
            return [kafka_end_offset(connection, topic, partition) for partition in range(partitions)]

    def renew(self, topic, partitions=1, settings=()):
        made = kafka_delete_topic(self.port, topic) and kafka_create_topic(self.port, topic, 1, partitions, settings)
        if not made:
            raise Failure(f"cannot make topic {topic} anew")
        while any(end != 0 for end in self.ends(topic, partitions)):
            time.sleep(0.05)

    def renew_pair(self, topic):
        """Makes a topic and its delay topic anew, both as a delayer needs them."""
        for name in (topic, f"{topic}-delay"):
            self.renew(name, settings=[("message.timestamp.type", "LogAppendTime")])

    def into(self, topic, count, *commands):
        """Runs what has to write so many records to the topic."""
        self.renew(topic)
        done = run(*commands)
        if (end := self.ends(topic)[0]) != count:
            raise Failure(f"{topic} has {end} records, not {count}, after {commands}")
        return done

    def fill(self, name, size, count, suffix="", envelope="{}"):
        """Makes a topic of all records, and one of a tenth of them; gives their names, without the suffix, by count."""
        topics = {count: f"{name}-{size}", count // 10: f"{name}-{size}-tenth"}
        for count, topic in topics.items():
            self.pour(topic + suffix, count, records(count, size, envelope))
        return topics

    def pour(self, topic, count, lines, partitions=1, settings=()):
        """Makes a topic of so many lines, each of them key|payload."""
        say(f"fills {topic} with {count:,} records")
        self.renew(topic, partitions, settings)
        options = ["-X", "batch.size=1000000", "-X", "linger.ms=50", "-X", "message.max.bytes=100000000"]
        command = self.write(topic, *options)
        with subprocess.Popen(command, stdin=subprocess.PIPE, env=ENVIRONMENT) as kcat:
            for line in lines:
                kcat.stdin.write(f"{line}\n".encode())
        if kcat.returncode != 0 or sum(self.ends(topic, partitions)) != count:
            raise Failure(f"cannot fill {topic}")

    def lines(self, topic, file):
        """Writes what a handler gets of a topic to a file, to give it to another program."""
        append = ["sh", "-c", 'cat >>"$0"', file]
        run(self.consume(topic, append, "-e", "--batch-size", "10000"))

    def judge(self, text, figure, is_met):
        """Notes what was wanted, and whether it is so."""
        self.verdicts.append(f"wanted {text}: {figure}, {'met' if is_met else 'missed'}")

    def hold_to(self, text, figure, is_met):
        """The same of what is promised: where it is not so, scripts/bench ends with status 1."""
        self.judge(text, figure, is_met)
        if not is_met:
            self.broken.append(f"{text}: {figure}")


def records(count, size, envelope="{}"):
    """Lines for kcat."""
    length = SIZES[size][0]
    for i in range(count):
        payload = f'{{"id":{i}}}'
        if length:
            payload = f'{{"id":{i},"text":"{NOISE[i % 5000:][:length - len(payload) - 10]}"}}'
        yield f"{i}|{envelope.replace('{}', payload)}"


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)
