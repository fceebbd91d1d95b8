"""Tables of Postgres, and how ksync-stream announces their rows, or changes them a thousand at a time."""

from bench import say
from pipes import run
from programs import find_postgres

CHANGE = "UPDATE {table} SET name = 'changed' WHERE id IN ({keys})"
COLUMNS = "id::bigint, 'product ' || id AS name"


def psql(bench):
    return [find_postgres("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", bench.postgres, "-c"]


def make_table(bench, table, count, columns=COLUMNS, key="id"):
    """Makes a table of so many rows; what its columns are made of is `id`, from 1 on."""
    say(f"fills table {table} with {count:,} rows")
    rows = f"{columns} FROM generate_series(1, {count}) AS id"
    run([*psql(bench), f"CREATE TABLE {table} AS SELECT {rows}; ALTER TABLE {table} ADD PRIMARY KEY ({key})"])
    run([*psql(bench), f"VACUUM ANALYZE {table}"])


def stream_rows(bench, topic, table, *arguments):
    return bench.ksync("stream", "-t", topic, "--database", bench.postgres, "--table", table, *arguments)


def announce(bench, table, count, *arguments):
    return bench.into("rows", count, stream_rows(bench, "rows", table, *arguments))


def clean(bench, table):
    """Leaves nothing of what was changed before, neither in the table nor in the topics."""
    run([*psql(bench), f"VACUUM {table}"])
    bench.renew_pair("updates")


def change(bench, table):
    clean(bench, table)
    statement = CHANGE.format(table=table, keys=":keys")
    return run(stream_rows(bench, "updates", table, "--chunk-time", "1h", "--sql", statement))
