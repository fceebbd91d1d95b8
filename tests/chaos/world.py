"""The servers, the topics and the tables of one run, and the folder where its history is written down."""

import contextlib
import importlib.machinery
import importlib.util
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "scripts" / "servers"))

from journal import Journal
from journal import entries
from kinds import KINDS
from kinds import kcat
from postgres import Postgres
from programs import Failure
from wire import ask
from wire import kafka_create_topic
from wire import kafka_end_offset

TOPIC = "chaos"
DELAY_TOPIC = "chaos-delay"
PARTITIONS = 4
KEYS = 10_000
DELAY_SECS = 5
SESSION_SECS = 4
REPLICAS = 3
TABLES = f"""
    CREATE TABLE rec (id int PRIMARY KEY, version int NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE hist (id int, version int, op int, xid xid8);
    CREATE TABLE copy (name text, id int, version int, term bigint, PRIMARY KEY (name, id)) WITH (fillfactor = 50);
    CREATE TABLE terms (name text, "partition" int, term bigint, PRIMARY KEY (name, "partition"));
    CREATE TABLE accepted (number bigserial, name text, "partition" int, term bigint, first bigint, last bigint);
    INSERT INTO rec SELECT id, 0 FROM generate_series(1, {KEYS}) AS id;
    INSERT INTO copy SELECT name, id, 0, 0 FROM rec, (VALUES ('index'), ('cache')) AS names (name);
    INSERT INTO terms SELECT name, number, 0 FROM generate_series(0, {PARTITIONS - 1}) AS number,
        (VALUES ('index'), ('cache')) AS names (name)
"""


def module_of_services():
    file = PROJECT / "scripts" / "services"
    loader = importlib.machinery.SourceFileLoader("services", str(file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("services", loader))
    sys.modules["services"] = module
    loader.exec_module(module)
    return module


services = module_of_services()


class World:
    """As a context it ends the servers, and on failure keeps their logs."""

    def __init__(self, folder, seed, batch_size, mutant=None):
        self.folder, self.seed, self.batch_size, self.mutant = folder, seed, batch_size, mutant
        self.servers_folder = folder / "servers"
        self.history = folder / "history"
        self.logs = folder / "logs"
        # By the name of the member that goes by it.
        self.clocks = {}

    def __enter__(self):
        if self.servers_folder.exists():
            self.scripts_services("down", "--purge")  # what a killed run has left
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self.servers_folder, self.history / "locks", self.logs):
            folder.mkdir(parents=True)
        self.journal = Journal(self.history / "world.jsonl")
        try:
            self.up()
            self.variables = dict(re.findall(r"export (\w+)='?([^'\n]*)", self.scripts_services("env")))
            self.kafka = self.variables["KSYNC_BOOTSTRAP_SERVER"]
            self.postgres = self.variables["KSYNC_TEST_POSTGRES"]
            Postgres(self.postgres).run(TABLES)
            self.make_topics()
        except BaseException:
            self.scripts_services("down")
            raise
        return self

    def __exit__(self, *_):
        for _, node in self.state.nodes(self.state.servers):
            node_signal(node, signal.SIGCONT)
        self.scripts_services("down")

    def noted(self, event):
        """The lines of this kind in its journal."""
        return [entry for entry in entries(self.history / "world.jsonl") if entry["event"] == event]

    def scripts_services(self, command, *arguments):
        line = [PROJECT / "scripts" / "services", command, *arguments, "--dir", self.servers_folder]
        done = subprocess.run(line, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failure(f"scripts/services {command} failed")
        return done.stdout

    def up(self):
        """Starts all servers that do not run, and returns when all of them work together."""
        self.scripts_services("up", "--brokers", str(REPLICAS), "--zookeepers", "3", "kafka", "zookeeper", "postgres")
        self.state = services.State(self.servers_folder)

    def heal_servers(self):
        for _, node in self.state.nodes(self.state.servers):
            node_signal(node, signal.SIGCONT)
        try:
            self.up()
        except Failure:
            # Its limit is for servers that start; these have to recover, too.
            self.up()

    def make_topics(self):
        settings = [("message.timestamp.type", "LogAppendTime"), ("min.insync.replicas", "2")]
        for topic in (TOPIC, DELAY_TOPIC):
            if not kafka_create_topic(self.brokers[0].ports["client"], topic, REPLICAS, PARTITIONS, settings):
                raise Failure(f"cannot make topic {topic}")
        # A broker learns of it a moment later.
        eventually("all brokers know the topics", 30, self.all_brokers_know_the_topics)

    def all_brokers_know_the_topics(self):
        return all(
            f'topic "{topic}"' in listed and "Unknown topic" not in listed
            for node in self.brokers for topic in (TOPIC, DELAY_TOPIC)
            for listed in [kcat(node, "-L", "-t", topic).stdout]
        )

    @property
    def brokers(self):
        return self.state.servers["kafka"]

    @property
    def zookeepers(self):
        return self.state.servers["zookeeper"]

    def restart(self, name, node):
        """Starts one server again without waiting for its peers; `up` does that in the end."""
        if not node.is_running():
            with services.locked(self.servers_folder / "lock"):
                services.start(self.state, KINDS[name], node)

    def works(self, name):
        """Whether all servers of a kind work together; one that listens may have much to do before it does."""
        return services.is_ready(KINDS[name], self.state.servers[name])

    def zookeeper_leader(self):
        """None while there is none."""
        for node in self.zookeepers:
            with contextlib.suppress(OSError):
                with socket.create_connection(("127.0.0.1", node.ports["client"]), timeout=1) as connection:
                    connection.sendall(b"srvr")
                    if b"Mode: leader" in connection.makefile("rb").read():
                        return node
        return None

    def ends(self, topic):
        """The end of each partition, asked of whoever leads it."""
        found = [None] * PARTITIONS
        for node in self.brokers:
            with contextlib.suppress(OSError, struct.error):
                with socket.create_connection(("127.0.0.1", node.ports["client"]), timeout=3) as connection:
                    for partition in range(PARTITIONS):
                        end = kafka_end_offset(connection, topic, partition)
                        found[partition] = end if found[partition] is None else found[partition]
        return found

    def offsets(self, topic, name):
        """What is committed of each partition, None where nothing is; None in all where no server answers."""
        paths = [f"/kafka_sync/consumer/{topic}/{partition}/{name}/offset" for partition in range(PARTITIONS)]
        for node in self.zookeepers:
            with contextlib.suppress(OSError, struct.error):
                return [int(text) if text else None for text in zookeeper_texts(node.ports["client"], paths)]
        return None


def node_signal(node, number):
    if node.is_running():
        os.kill(node.pid, number)


def listens(node):
    with contextlib.suppress(OSError):
        with socket.create_connection(("127.0.0.1", node.ports["client"]), timeout=0.5):
            return True
    return False


def zookeeper_texts(port, paths):
    """The data of nodes; an empty text where there is none."""
    connect = struct.pack(">iqiqi16s?", 0, 0, 5000, 0, 16, b"", False)
    get_data, close = 4, -11
    with socket.create_connection(("127.0.0.1", port), timeout=3) as connection:
        ask(connection, connect)
        for path in paths:
            request = struct.pack(">iii", 1, get_data, len(path)) + path.encode() + b"\0"
            answer = ask(connection, request)
            _xid, _zxid, error = struct.unpack_from(">iqi", answer)
            size = struct.unpack_from(">i", answer, 16)[0] if error == 0 else 0
            yield answer[20:20 + size].decode()
        ask(connection, struct.pack(">ii", 2, close))


def eventually(what, limit_secs, is_true):
    begun = time.monotonic()
    while not is_true():
        if time.monotonic() - begun > limit_secs:
            raise Failure(f"{what}: not so after {limit_secs} s")
        time.sleep(0.1)
