"""(a) to (c): how many records or rows the three tools do in a second, beside kcat and psql."""

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
