"""What the handlers for real stores share: the keys of a batch, their rows in the primary, what becomes of a failure.

DATABASE_URL is the primary, a server of Postgres; TABLE (products) its table, KEY (id) its key, several columns as a,b, named as
in the payload.
"""

import json
import os
import subprocess
import sys

from postgres import LIMIT_SECS, give_up, literal, psql

TABLE, KEY = os.environ.get("TABLE", "products"), os.environ.get("KEY", "id")
COLUMNS = KEY.split(",")
# The version: how many transactions the primary had behind it when the rows were read. Who has a higher one has read later.
LOOK_UP = """
SELECT json_build_array(pg_snapshot_xmax(seen)::text::bigint - (SELECT count(*) FROM pg_snapshot_xip(seen)), (
    SELECT json_agg(to_jsonb(found)::text ORDER BY ordinality)
    FROM json_populate_recordset(NULL::{table}, {keys}) WITH ORDINALITY AS wanted LEFT JOIN {table} AS found USING ({key})
)) FROM pg_current_snapshot() AS seen;"""


class Number(str):
    """A number that is no integer, as it was written: as a float it could lose digits."""


def key_of(record):
    """Its key as text, as ksync writes it, and by columns."""
    payload, key = record["payload"], record["key"]
    if payload is None:  # a tombstone says by its key what was deleted
        values = json.loads(key, parse_float=Number) if COLUMNS[1:] else [key]
    elif COLUMNS[1:] and isinstance(payload, dict) and isinstance(payload.get("id"), list):
        values = payload["id"]  # so the clients of applications write a key of several columns
    else:
        values = [payload[column] for column in COLUMNS]
    if len(values) != len(COLUMNS):
        raise KeyError
    if any(type(value) not in (int, str, Number) for value in values):
        raise ValueError(f"a key ({KEY}) that is neither number nor text")
    parts = [value if isinstance(value, Number) else json.dumps(value, ensure_ascii=False) for value in values]
    return f"[{','.join(parts)}]" if COLUMNS[1:] else str(values[0]), dict(zip(COLUMNS, values))


def look_up(batch):
    """The version, and in the order of the batch each row, as JSON, or None."""
    command, environment = psql("DATABASE_URL")
    names = ", ".join('"{}"'.format(column.replace('"', '""')) for column in COLUMNS)
    sql = LOOK_UP.format(table=TABLE, key=names, keys=literal(json.dumps([key for key, _ in batch.values()])))
    streams = {"input": sql, "encoding": "utf-8", "capture_output": True}
    done = subprocess.run(command, env=environment, timeout=LIMIT_SECS, **streams)
    return json.loads(done.stdout) if done.returncode == 0 else give_up(done.stderr)


def handle(write):
    """Has `write` write the batch: {key as text: (key by columns, offset)}. It gives offsets that failed for good, and why."""
    batch, failed = {}, []
    for line in sys.stdin.buffer:  # to the end: a batch that was not read is not done
        record = json.loads(line, parse_float=Number)
        try:
            text, key = key_of(record)
            batch[text] = key, record["offset"]
        except (KeyError, TypeError, json.JSONDecodeError):
            failed.append((record["offset"], f"no key ({KEY})"))
        except ValueError as error:
            failed.append((record["offset"], str(error)))
    try:
        failed += write(batch) if batch else []
    except (OSError, subprocess.TimeoutExpired) as error:
        give_up(f"the store is away: {error!r}")
    with open(int(os.environ["KSYNC_RESULT_FD"]), "w") as results:
        for offset, error in failed:
            print(json.dumps({"offset": offset, "status": "fail", "error": error, "permanent": True}), file=results)
