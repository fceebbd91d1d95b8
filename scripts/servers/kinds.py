"""The kinds of servers. Another one is another class, and its name in KINDS."""

import base64
import concurrent.futures
import json
import re
import shutil
import signal
import subprocess
import uuid

from programs import JARS
from programs import RECIPES
from programs import answers
from programs import find
from programs import find_postgres
from programs import java
from programs import run
from server import Server
from server import fill_template
from stores import Memcached
from stores import OpenSearch
from stores import Redis
from wire import kafka_create_topic
from wire import zookeeper_write


class Kafka(Server):
    name = "kafka"
    tools = ("java", "mvn", "kcat")
    purge_signal = signal.SIGKILL
    shares_classes = True
    counts = (1, 3)
    ports = ("client", "controller")
    topic = "ksync-services-ready"
    logging = f"log4j2.configurationFile={RECIPES}/kafka/log4j2.properties"

    def prepare(self, nodes, homes, account):
        voters = ",".join(f"{n.index}@127.0.0.1:{n.ports['controller']}" for n in nodes)
        for node, home in zip(nodes, homes):
            fill_template(
                RECIPES / "kafka" / "server.properties",
                home / "server.properties",
                index=node.index,
                voters=voters,
                port=node.ports["client"],
                controller=node.ports["controller"],
                data=home / "data",
                replicas=len(nodes),
                in_sync=min(2, len(nodes)),
            )
        metas = [home / "data" / "meta.properties" for home in homes]
        cluster = cluster_id([meta.read_text() for meta in metas if meta.exists()])
        unformatted = [home for home, meta in zip(homes, metas) if not meta.exists()]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda home: self.format(home, cluster), unformatted))

    def format(self, home, cluster):
        # In one word, since the id may begin with a dash.
        options = ["format", f"--cluster-id={cluster}", f"--config={home}/server.properties"]
        run("cannot format kafka's storage", java("kafka", self.logging, "kafka.tools.StorageTool", *options))

    def command(self, node, nodes, home):
        heap = "-Xmx1g" if len(nodes) == 1 else "-Xmx384m"
        return java("kafka", self.logging, heap, "kafka.Kafka", home / "server.properties")

    def is_ready(self, nodes):
        if not kafka_create_topic(nodes[0].ports["client"], self.topic, len(nodes)):
            return False
        return all(self.sees_all(node, len(nodes)) for node in nodes) and self.can_produce(nodes[0])

    def sees_all(self, node, brokers):
        """All brokers, the topic, and that all partitions have all of their replicas: before that one may take nothing."""
        listing = kcat(node, "-L", "-J", "-m", "2")
        if listing.returncode != 0:
            return False
        seen = json.loads(listing.stdout)
        partitions = [partition for topic in seen["topics"] for partition in topic["partitions"]]
        are_whole = all(p["leader"] >= 0 and len(p["isrs"]) == len(p["replicas"]) for p in partitions)
        has_topic = any(topic["topic"] == self.topic and topic["partitions"] for topic in seen["topics"])
        return len(seen["brokers"]) == brokers and has_topic and are_whole

    def can_produce(self, node):
        options = ["-X", "acks=all", "-X", "enable.idempotence=true", "-X", "message.timeout.ms=3000"]
        return kcat(node, "-P", "-t", self.topic, *options, input="ready\n").returncode == 0

    def env(self, nodes, homes):
        return {
            "KSYNC_BOOTSTRAP_SERVER": ",".join(node.address for node in nodes),
            "KSYNC_KAFKA_CLASSPATH": f"{JARS}/kafka/*",
        }


class ZooKeeper(Server):
    name = "zookeeper"
    tools = ("java", "mvn")
    purge_signal = signal.SIGKILL
    shares_classes = True
    counts = (1, 3)
    ports = ("client", "peer", "election")

    def prepare(self, nodes, homes, account):
        peers = [f"server.{n.index}=127.0.0.1:{n.ports['peer']}:{n.ports['election']}" for n in nodes]
        for node, home in zip(nodes, homes):
            (home / "data").mkdir(exist_ok=True)
            (home / "data" / "myid").write_text(f"{node.index}\n")
            if not node.is_running():
                note_last_epoch(home / "data" / "version-2")
            fill_template(
                RECIPES / "zookeeper" / "zoo.cfg",
                home / "zoo.cfg",
                port=node.ports["client"],
                data=home / "data",
                servers="\n".join(peers) if len(nodes) > 1 else "",
            )

    def command(self, node, nodes, home):
        logging = f"logback.configurationFile={RECIPES}/zookeeper/logback.xml"
        main = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
        # Servers are killed here, machines are not: what was written is there.
        return java("zookeeper", logging, "-Dzookeeper.forceSync=no", "-Xmx256m", main, home / "zoo.cfg")

    def is_ready(self, nodes):
        return all(zookeeper_write(node.ports["client"]) for node in nodes)

    def env(self, nodes, homes):
        return {
            "KSYNC_ZOOKEEPER": ",".join(node.address for node in nodes),
            "KSYNC_ZOOKEEPER_CLASSPATH": f"{JARS}/zookeeper/*",
            "KSYNC_ZOOKEEPER_DATA": ":".join(f"{home}/data" for home in homes),
        }


def note_last_epoch(data):
    """Makes a server startable that was killed after its first transactions of an epoch, but before it noted that epoch.

    It would refuse to start forever (ZOOKEEPER-2354). What it has of that epoch is its leader's, so the note may say so.
    """
    note, names = data / "currentEpoch", [file.name for file in (*data.glob("log.*"), *data.glob("snapshot.*"))]
    if not note.exists() or not names:
        return
    # A name ends with a zxid: the epoch, and 32 bits of a counter.
    epoch = max(int(name.rpartition(".")[2], 16) >> 32 for name in names)
    if epoch > int(note.read_text()):
        note.write_text(f"{epoch}\n")


class Postgres(Server):
    name = "postgres"
    tools = ("postgres",)
    accounts = ("postgres",)
    # "Fast"; SIGTERM would wait until all clients have gone.
    stop_signal = purge_signal = signal.SIGINT

    def prepare(self, nodes, homes, account):
        data = homes[0] / "data"
        # A killed one leaves these, and where nobody reaps orphans (some containers) its process
        # still seems to exist to the next one.
        for lock in (data / "postmaster.pid", *homes[0].glob(".s.PGSQL.*")):
            lock.unlink(missing_ok=True)
        if data.exists():
            return
        # Under another name first, so that what was interrupted is not taken for a database.
        new = homes[0] / "new"
        shutil.rmtree(new, ignore_errors=True)
        options = ["-U", "ksync", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        run("cannot create postgres' data", [find_postgres("initdb"), "-D", new, *options], account)
        # A role of this name is the only one that is asked for its password.
        rules = new / "pg_hba.conf"
        rules.write_text(f"host all with_password 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        single = [find_postgres("postgres"), "--single", "-F", "-D", new, "postgres"]
        run("cannot create postgres' database", single, account, input="CREATE DATABASE ksync\n")
        new.rename(data)

    def command(self, node, nodes, home):
        place = ["-D", f"{home}/data", "-k", home, "-h", "127.0.0.1", "-p", str(node.ports["client"])]
        return [find_postgres("postgres"), *place, "-c", "fsync=off"]

    def is_ready(self, nodes):
        return answers([find_postgres("psql"), "-X", "-c", "SELECT 1", self.url(nodes[0])])

    def env(self, nodes, homes):
        return {"KSYNC_TEST_POSTGRES": self.url(nodes[0])}

    def url(self, node):
        return f"postgres://ksync@{node.address}/ksync"


class MariaDb(Server):
    name = "mariadb"
    tools = ("mariadbd", "mariadb")
    accounts = ("mysql", "nobody")

    def prepare(self, nodes, homes, account):
        data = homes[0] / "data"
        if data.exists():
            return
        new = homes[0] / "new"
        shutil.rmtree(new, ignore_errors=True)
        place = ["--no-defaults", f"--datadir={new}"]
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        run("cannot create mariadb's data", [find("mariadb-install-db"), *place, *options], account)
        # Accounts are not known at bootstrap before this FLUSH. Nobody logs in as ''@localhost
        # then, which would go before ksync@'%' on the socket.
        users = """
            FLUSH PRIVILEGES;
            DROP USER IF EXISTS ''@localhost;
            CREATE DATABASE ksync CHARACTER SET utf8mb4;
            CREATE USER ksync@'%';
            GRANT ALL ON *.* TO ksync@'%' WITH GRANT OPTION;
        """
        run("cannot create mariadb's database", [find("mariadbd"), *place, "--bootstrap"], account, users)
        new.rename(data)

    def command(self, node, nodes, home):
        place = [f"--datadir={home}/data", f"--socket={home}/socket", f"--pid-file={home}/pid"]
        address = ["--bind-address=127.0.0.1", f"--port={node.ports['client']}", "--skip-name-resolve"]
        # Survives a crash of the server, though not of the machine.
        speed = ["--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=128M"]
        return [find("mariadbd"), "--no-defaults", *place, *address, *speed]

    def is_ready(self, nodes):
        login = ["-h127.0.0.1", f"-P{nodes[0].ports['client']}", "-uksync", "ksync"]
        return answers([find("mariadb"), "--no-defaults", *login, "-e", "SELECT 1"])

    def env(self, nodes, homes):
        return {"KSYNC_TEST_MARIADB": f"mysql://ksync@{nodes[0].address}/ksync"}


SERVERS = (Kafka(), ZooKeeper(), Postgres(), MariaDb(), OpenSearch(), Redis(), Memcached())
KINDS = {server.name: server for server in SERVERS}


def cluster_id(metas):
    """The id in the files, since all brokers of a cluster must have the same, or else a new one."""
    found = re.search(r"^cluster\.id=(.+)$", "\n".join(metas), re.MULTILINE)
    return found[1] if found else base64.urlsafe_b64encode(uuid.uuid4().bytes)[:22].decode()


def kcat(node, *arguments, input=None):
    command = ["kcat", "-b", node.address, "-X", "log_level=0", *arguments]
    return subprocess.run(command, input=input, text=True, capture_output=True, timeout=15)
