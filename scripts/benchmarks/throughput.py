"""(a) to (c): how many records or rows the three tools do in a second, beside kcat and psql."""

import subprocess
import tempfile

from bench import HANDLER
from bench import SIZES
from contest import Contender
from contest import contest
from pipes import run
from tables import CHANGE
from tables import announce
from tables import change
from tables import clean
from tables import make_table
from tables import psql
from wire import kafka_end_offset

IDEMPOTENT = ["-X", "acks=all", "-X", "enable.idempotence=true"]


def consume(bench):
    for size in SIZES:
        consume_of(bench, size)


def consume_of(bench, size):
    topics = bench.fill("read", size, bench.options.records)

    def ksync(*arguments):
        return lambda count: run(bench.consume(topics[count], HANDLER, "-e", *arguments))

    contest(bench, f"(a) {bench.options.records:,} records, payloads {SIZES[size][1]}", topics, [
        Contender("ksync-consume", ksync(), {"kcat -C -J | cat": 2}),
        Contender("ksync-consume --batch-size 10000", ksync("--batch-size", "10000"),
                  {"kcat -C -J | cat": 4, "kcat -C": 0.5}),
        Contender("kcat -C -J | cat", lambda count: run(bench.read(topics[count], "-J"), ["cat"])),
        Contender("kcat -C", lambda count: run(bench.read(topics[count]))),
    ])


def delayer(bench):
    for size in SIZES:
        delayer_of(bench, size)


def delayer_of(bench, size):
    # All due: made in 2023.
    envelope = '{"payload": {}, "created_at": 1700000000.000}'
    topics = bench.fill("copy", size, bench.options.records, "-delay", envelope)

    def ksync(count):
        topic = topics[count]
        bench.renew(topic)
        with bench.connection() as connection:
            command = bench.ksync("delayer", "-t", topic, "--delay", "1s")
            return run(command, until=lambda: kafka_end_offset(connection, topic) >= count)

    def kcat(count):
        pipe = bench.read(f"{topics[count]}-delay", "-K", "|"), bench.write("copy-kcat", *IDEMPOTENT)
        return bench.into("copy-kcat", count, *pipe)

    contest(bench, f"(b) {bench.options.records:,} due messages, payloads {SIZES[size][1]}", topics, [
        Contender("ksync-delayer", ksync, {"kcat -C | kcat -P": 1.5}),
        Contender("kcat -C | kcat -P", kcat),
    ])


def stream(bench):
    rows = bench.options.rows
    tables = {rows: "products", rows // 10: "products_tenth"}
    for count, table in tables.items():
        make_table(bench, table, count)

    def ksync(*arguments):
        return lambda count: announce(bench, tables[count], count, *arguments)

    def kcat(count):
        line = """id || '|{"id":' || id || '}'"""
        copy = [*psql(bench), f"COPY (SELECT {line} FROM {tables[count]}) TO STDOUT"]
        return bench.into("rows", count, copy, bench.write("rows", *IDEMPOTENT))

    contest(bench, f"(c) {rows:,} rows of Postgres, ids only", tables, [
        Contender("ksync-stream", ksync(), {"psql COPY | kcat -P": 0.7}),
        Contender("ksync-stream --chunk-size 1000", ksync("--chunk-size", "1000"), {}),
        Contender("psql COPY | kcat -P", kcat),
    ])
    update(bench, tables)


def update(bench, tables):
    """The same rows, changed a thousand at a time between their messages."""
    keys = "SELECT unnest(''' || ids::text || '''::bigint[])"
    chunks = "SELECT array_agg(id) AS ids FROM {table} GROUP BY (id - 1) / 1000 ORDER BY min(id)"

    def chunked(count):
        table, plain = tables[count], psql(bench)[:-1]
        clean(bench, table)
        line = CHANGE.replace("'changed'", "''changed''").format(table=table, keys=keys)
        made = f"SELECT 'BEGIN; {line}; COMMIT;' FROM ({chunks.format(table=table)}) AS chunks"
        with tempfile.NamedTemporaryFile("w") as file:
            subprocess.run([*plain, "-A", "-t", "-c", made], stdout=file, check=True)
            return run([*plain, "-f", file.name])

    def one(count):
        clean(bench, tables[count])
        return run([*psql(bench), f"UPDATE {tables[count]} SET name = 'changed'"])

    contest(bench, f"(c) {bench.options.rows:,} rows of Postgres, changed", tables, [
        Contender("ksync-stream --sql, 1,000 at a time", lambda count: change(bench, tables[count]),
                  {"psql, 1,000 at a time": 0.67, "psql, at once": 0.5}),
        Contender("psql, 1,000 at a time", chunked),
        Contender("psql, at once", one),
    ])
