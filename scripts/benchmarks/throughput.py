"""(a) to (c): how many records or rows the three tools do in a second, beside kcat and psql."""

import json
import subprocess
import tempfile
from pathlib import Path

from bench import HANDLER
from bench import SIZES
from contest import Contender
from contest import contest
from pipes import run
from programs import find_postgres
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
    psql = [find_postgres("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", bench.postgres, "-c"]
    for count, table in tables.items():
        columns = f"id::bigint, 'product ' || id AS name FROM generate_series(1, {count}) AS id"
        run([*psql, f"CREATE TABLE {table} AS SELECT {columns}; ALTER TABLE {table} ADD PRIMARY KEY (id)"])
        run([*psql, f"VACUUM ANALYZE {table}"])

    def ksync(*arguments):
        command = bench.ksync("stream", "-t", "rows", "--database", bench.postgres, *arguments, "--table")
        return lambda count: bench.into("rows", count, [*command, tables[count]])

    def kcat(count):
        line = """id || '|{"id":' || id || '}'"""
        copy = [*psql, f"COPY (SELECT {line} FROM {tables[count]}) TO STDOUT"]
        return bench.into("rows", count, copy, bench.write("rows", *IDEMPOTENT))

    contest(bench, f"(c) {rows:,} rows of Postgres, ids only", tables, [
        Contender("ksync-stream", ksync(), {"psql COPY | kcat -P": 0.7}),
        Contender("ksync-stream --chunk-size 1000", ksync("--chunk-size", "1000"), {}),
        Contender("psql COPY | kcat -P", kcat),
    ])
    update(bench, psql, tables)
    resume(bench, tables[rows])


def resume(bench, table):
    """How long it takes from the start of a run to its first message, wherever the last run has stopped."""
    with tempfile.TemporaryDirectory() as folder:
        file, rows = Path(folder) / "checkpoint", bench.options.rows
        source = ["--database", bench.postgres, "--table", table, "--checkpoint", file]
        command = bench.ksync("stream", "-t", "rows", *source, "--rate", "1000/s")
        bench.renew("rows")
        run(command, until=lambda: bench.ends("rows")[0] > 0, statuses=(75,))
        seconds = []
        for done in (rows // 1000, rows // 2, rows - 5000):
            checkpoint = json.loads(file.read_text())
            file.write_text(json.dumps(checkpoint | {"last": [{"integer": done}], "rows": done}))
            bench.renew("rows")
            seconds.append(run(command, until=lambda: bench.ends("rows")[0] > 0, statuses=(75,)).seconds)
    figures = ", ".join(f"{second:.2f}" for second in seconds)
    print(f"\n(c) {rows:,} rows of Postgres: the first message of a resume at a thousandth, the half, the end: {figures} s")
    bench.judge("a resume within 1 s", f"{max(seconds):.2f} s", max(seconds) <= 1)


def update(bench, psql, tables):
    """The same rows, changed a thousand at a time between their messages."""
    change = "UPDATE {table} SET name = 'changed' WHERE id IN ({keys})"
    keys = "SELECT unnest(''' || ids::text || '''::bigint[])"
    chunks = "SELECT array_agg(id) AS ids FROM {table} GROUP BY (id - 1) / 1000 ORDER BY min(id)"

    def ready(count):
        run([*psql, f"VACUUM {tables[count]}"])
        for topic in ("updates", "updates-delay"):
            bench.renew(topic, settings=[("message.timestamp.type", "LogAppendTime")])
        return tables[count]

    def ksync(count):
        table = ready(count)
        options = ["--database", bench.postgres, "--table", table, "--chunk-time", "1h"]
        return run(bench.ksync("stream", "-t", "updates", *options, "--sql", change.format(table=table, keys=":keys")))

    def chunked(count):
        table = ready(count)
        line = change.replace("'changed'", "''changed''").format(table=table, keys=keys)
        made = f"SELECT 'BEGIN; {line}; COMMIT;' FROM ({chunks.format(table=table)}) AS chunks"
        with tempfile.NamedTemporaryFile("w") as file:
            subprocess.run([*psql[:-1], "-A", "-t", "-c", made], stdout=file, check=True)
            return run([*psql[:-1], "-f", file.name])

    def one(count):
        return run([*psql, f"UPDATE {ready(count)} SET name = 'changed'"])

    contest(bench, f"(c) {bench.options.rows:,} rows of Postgres, changed", tables, [
        Contender("ksync-stream --sql, 1,000 at a time", ksync, {"psql, 1,000 at a time": 0.67, "psql, at once": 0.5}),
        Contender("psql, 1,000 at a time", chunked),
        Contender("psql, at once", one),
    ])
