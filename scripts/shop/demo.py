#!/usr/bin/env python3
"""Shows a whole shop: applications in Ruby, Python and Rust change one table of Postgres at the same time, an index of OpenSearch and
a cache in Redis follow, and all of them are killed at random. In the end the three are compared, row by row."""

import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from stage import BINARIES
from stage import HANDLERS
from stage import PROJECT
from stage import Failure
from stage import Stage
from stage import build
from stage import expect
from stage import perform
from stage import run
from stage import tell

HERE = Path(__file__).resolve().parent
DIR = PROJECT / "target" / "shop"
LIBRARIES = PROJECT / "target" / "servers"

ROWS = 2000
PARTITIONS = 4
DELAY_SECS = 10
KILLING_SECS = 60
LIMIT_SECS = 60
TABLE = "CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL)"


class Shop(Stage):
    def __init__(self):
        super().__init__(DIR, LIMIT_SECS)
        self.commands, self.changes, self.killed = {}, Counter(), Counter()
        self.is_over = threading.Event()

    def __exit__(self, *failure):
        self.is_over.set()
        super().__exit__(*failure)

    def start_servers(self):
        tell("starts Kafka, ZooKeeper, Postgres, OpenSearch and Redis")
        run(self.services("up", "kafka", "zookeeper", "postgres", "opensearch", "redis"))
        run(self.services("install", "frameworks"))
        servers = self.servers()
        for name in [name for name in os.environ if name.startswith("KSYNC_")]:
            del os.environ[name]
        os.environ.update({
            "KSYNC_BOOTSTRAP_SERVER": servers["KSYNC_BOOTSTRAP_SERVER"],
            "KSYNC_ZOOKEEPER": servers["KSYNC_ZOOKEEPER"],
            "KSYNC_TOPIC": "products",
            "KSYNC_DELAY": f"{DELAY_SECS}s",
            "KSYNC_SESSION_TIMEOUT": "4s",
            "KSYNC_CONFIG": "/dev/null",
            "KSYNC_SOCKET": str(DIR / "ksync.sock"),
            "DATABASE_URL": servers["KSYNC_TEST_POSTGRES"],
            "OPENSEARCH_URL": servers["KSYNC_TEST_OPENSEARCH"],
            "REDIS_URL": f"redis://{servers['KSYNC_TEST_REDIS']}",
            "RUBYLIB": str(PROJECT / "examples" / "ruby"),
            "PYTHONPATH": f"{PROJECT / 'examples' / 'python'}:{LIBRARIES / 'python'}",
            "ROWS": str(ROWS),
        })
        psql(f"{TABLE}; INSERT INTO products SELECT n, 'product ' || n, n FROM generate_series(1, {ROWS}) AS n")
        settings = {"settings": {"index.gc_deletes": "1d", "index.number_of_replicas": 0}}
        ask_opensearch("PUT", "/products", settings)

    def start_processes(self):
        """Two of each that may be killed: the one goes on while the other is gone."""
        self.start("delayer-1", BINARIES / "ksync-delayer", f"--create-topics={PARTITIONS}")
        self.wait("the delayer leads", lambda: self.log("delayer-1").count("leading from") == PARTITIONS)
        self.start("delayer-2", BINARIES / "ksync-delayer")
        for number in (1, 2):
            self.start(f"indexer-{number}", BINARIES / "ksync-consume", "-n", "indexer", "--", HANDLERS / "opensearch.py")
            self.start(f"cacher-{number}", BINARIES / "ksync-consume", "-n", "cacher", "--", HANDLERS / "redis.py")
        self.start("ksync-stream", BINARIES / "ksync-stream", "--serve", os.environ["KSYNC_SOCKET"])
        self.wait("ksync-stream serves", lambda: "serving" in self.log("ksync-stream"))
        run([BINARIES / "ksync-stream", "--table", "products", "-q"])
        self.wait("index and cache are filled", lambda: not self.differences())
        tell(f"{ROWS} products, all of them in the index and in the cache")

    def start_applications(self):
        self.start("rails", "ruby", HERE / "records.rb")
        self.start("sqlalchemy", sys.executable, HERE / "alchemy.py")
        with socket.create_server(("127.0.0.1", 0)) as free:
            os.environ["SHOP_LISTEN"] = "{}:{}".format(*free.getsockname())
        self.start("axum", BINARIES / "examples" / "rust-shop")
        threading.Thread(target=self.visit, daemon=True).start()

    def visit(self):
        """The customers of the application in Rust."""
        while not self.is_over.is_set():
            id, price = random.randint(1, ROWS), random.randrange(1000)
            request = random.choice([
                ("PUT", "/products", {"id": id, "name": f"by rust {price}", "price": price}),
                ("PUT", "/products", {"id": id, "name": f"by rust {price}", "price": price}),
                ("DELETE", f"/products/{id}", None),
                ("POST", "/prices", {"below": 3, "price": price}),
            ])
            try:
                self.changes["axum"] += http_request(os.environ["SHOP_LISTEN"], *request)[0] in (202, 204)
            except OSError:
                time.sleep(0.1)  # it was killed, and is started again

    def kill(self):
        """At random, and each is started again at once."""
        until = time.monotonic() + KILLING_SECS
        while time.monotonic() < until:
            time.sleep(random.uniform(0.2, 2))
            name = random.choice(list(self.processes))
            process = self.processes[name]
            expect(process.poll() is None, f"{name} has ended by itself, with status {process.returncode}")
            process.kill()
            process.wait()
            self.killed[name] += 1
            self.start(name, *self.commands[name])
        tell(f"{self.killed.total()} kills in {KILLING_SECS} s: " + ", ".join(f"{name} {n}" for name, n in sorted(self.killed.items())))

    def close(self):
        """The applications end; what they have changed is to arrive, by delay messages where nothing else is left."""
        self.is_over.set()
        for name in ("rails", "sqlalchemy", "axum"):
            process = self.processes.pop(name)
            process.kill()
            process.wait()
            self.changes[name] += self.log(name).count("changed\n")
        tell(f"{self.changes.total()} changes: " + ", ".join(f"{name} {count}" for name, count in sorted(self.changes.items())))
        expect(min(self.changes.values()) > 0, "an application has changed nothing")
        behind = self.differences()
        closed = time.monotonic()
        self.wait("index and cache equal the table", lambda: not self.differences())
        tell(f"{len(behind)} rows were behind at the end; {time.monotonic() - closed:.1f} s later index and cache equal the table, row by row: "
             f"{len(rows())} products")

    def verify(self):
        verify = [BINARIES / "ksync-stream", "--table", "products", "--verify", "-q"]
        run([*verify, "--", HANDLERS / "opensearch_holds.py"])
        run([*verify, "--", HANDLERS / "redis_holds.py"])
        tell("ksync-stream --verify finds no difference either")

    def differences(self):
        table, index, cache = rows(), indexed(), cached()
        ids = table.keys() | index.keys() | cache.keys()
        return [id for id in ids if not table.get(id) == index.get(id) == cache.get(id)]

    def start(self, name, *command):
        self.commands[name] = command
        super().start(name, *command)


def rows():
    lines = psql("SELECT to_jsonb(products)::text FROM products").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def indexed():
    ask_opensearch("POST", "/products/_refresh")
    hits = ask_opensearch("POST", "/products/_search", {"size": 10000})["hits"]["hits"]
    return {int(hit["_id"]): hit["_source"] for hit in hits}


def cached():
    # The handler's own client; it looks for REDIS_URL when it is imported.
    sys.path.insert(0, str(HANDLERS))
    from redis import ask

    found = ask([("HGET", f"products:{id}", "row") for id in range(1, ROWS + 1)])
    return {row["id"]: row for row in map(json.loads, filter(None, found))}


def ask_opensearch(method, path, body=None):
    status, answer = http_request(os.environ["OPENSEARCH_URL"].removeprefix("http://"), method, path, body)
    if status != 200:
        raise Failure(f"OpenSearch: {status} {answer}")
    return json.loads(answer)


def http_request(address, method, path, body=None):
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        body = None if body is None else json.dumps(body)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as error:
        raise OSError("no whole answer") from error
    finally:
        connection.close()


def psql(sql):
    return run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", os.environ["DATABASE_URL"]], input=sql, stdout=subprocess.PIPE)


def main():
    build("--example", "rust-shop")
    with Shop() as shop:
        shop.start_servers()
        shop.start_processes()
        shop.start_applications()
        shop.kill()
        shop.close()
        shop.verify()


if __name__ == "__main__":
    perform(main)
