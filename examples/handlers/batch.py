"""What the handlers for real stores share: the keys of a batch, their rows in the primary, what becomes of a failure.

DATABASE_URL is the primary, a server of Postgres; TABLE (products) its table, KEY (id) its key, several columns as a,b. It is
asked by psql, so that nothing but Python is needed; use a driver in your own.
"""

import json
import os
import re
import subprocess
import sys

from products_of_server import client

TABLE, KEY = os.environ.get("TABLE", "products"), os.environ.get("KEY", "id")
COLUMNS = KEY.split(",")
# The version: how many transactions the primary had behind it when the rows were read. Who has a higher one has read later.
LOOK_UP = """
SELECT json_build_array(pg_snapshot_xmax(seen)::text::bigint - (SELECT count(*) FROM pg_snapshot_xip(seen)), (
    SELECT json_agg(to_jsonb(found)::text ORDER BY ordinality)
    FROM json_populate_recordset(NULL::{table}, {keys}) WITH ORDINALITY AS wanted LEFT JOIN {table} AS found USING ({key})
)) FROM pg_current_snapshot() AS seen;"""


def key_of(record):
    """Its key as text, as ksync writes it, and by columns."""
    payload, key = record["payload"], record["key"]
    if payload is None:  # a tombstone says by its key what was deleted
        values = json.loads(key) if COLUMNS[1:] else [key]
    else:
        values = [payload[column] for column in COLUMNS]
    if len(values) != len(COLUMNS) or any(type(value) not in (int, str) for value in values):
        raise ValueError
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":")) if COLUMNS[1:] else str(values[0])
    return text, dict(zip(COLUMNS, values))


def literal(text):
    return "'" + text.replace("'", "''") + "'"


def psql(url):
    command, environment = client(url)
    # With the codes of errors. And no replica: it may lag, and its versions are others.
    return [*command, "-v", "VERBOSITY=verbose"], {**environment, "PGTARGETSESSIONATTRS": "primary", "PGTZ": "UTC"}


def give_up(errors):
    """Ends the process, by what these errors mean to ksync: if they are not psql's, that the same batch comes again."""
    print(errors.strip(), file=sys.stderr)
    found = re.search(r"^\w+: +(\d\d)\w{3}: ", errors, re.MULTILINE)
    # Of the classes 22 and 23: a value that does not fit; 42: no such table, or no right to it.
    sys.exit({"22": 65, "23": 65, "42": 78}.get(found and found[1], 75))


def look_up(batch):
    """The version, and in the order of the batch each row, as JSON, or None."""
    command, environment = psql(os.environ["DATABASE_URL"])
    sql = LOOK_UP.format(table=TABLE, key=KEY, keys=literal(json.dumps([key for key, _ in batch.values()])))
    done = subprocess.run(command, env=environment, input=sql, encoding="utf-8", capture_output=True)
    return json.loads(done.stdout) if done.returncode == 0 else give_up(done.stderr)


def handle(write):
    """Has `write` write the batch: {key as text: (key by columns, offset)}. It gives offsets that failed for good, and why."""
    batch, failed = {}, []
    for line in sys.stdin.buffer:  # to the end: a batch that was not read is not done
        record = json.loads(line)
        try:
            text, key = key_of(record)
            batch[text] = key, record["offset"]
        except (KeyError, TypeError, ValueError):
            failed.append((record["offset"], f"no key ({KEY})"))
    try:
        failed += write(batch) if batch else []
    except OSError as error:
        give_up(f"the store is away: {error!r}")
    with open(int(os.environ["KSYNC_RESULT_FD"]), "w") as results:
        for offset, error in failed:
            print(json.dumps({"offset": offset, "status": "fail", "error": error, "permanent": True}), file=results)
