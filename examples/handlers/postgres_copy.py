#!/usr/bin/env python3
"""Keeps a copy of a table in another database of Postgres: a handler for ksync-consume.

COPY_URL; WRITE has the columns, the rest is in batch.py. The copy needs the table, with no constraint but its primary key, and

    CREATE TABLE ksync_terms (topic text, "partition" int, name text, term bigint, PRIMARY KEY (topic, "partition", name));
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
from subprocess import PIPE

from batch import TABLE, handle, look_up
from postgres import LIMIT_SECS, give_up, literal, psql

# Locks the row of this partition, and notes the term, unless a later leader was here; 0 is that of --replay, and notes nothing.
# Then all of the table, as another partition may have the same row. Always in this order, so that nobody waits in a circle. Who
# sleeps with the locks loses them.
FENCE = """SET idle_in_transaction_session_timeout = '1min'; BEGIN; WITH fence AS (
    INSERT INTO ksync_terms AS last VALUES
        ('{KSYNC_BATCH_TOPIC}', {KSYNC_BATCH_PARTITION}, '{KSYNC_BATCH_NAME}', {KSYNC_BATCH_TERM})
    ON CONFLICT (topic, "partition", name) DO UPDATE SET term = greatest(last.term, excluded.term)
        WHERE last.term <= excluded.term OR excluded.term = 0
    RETURNING term
) SELECT count(*) FROM fence;
SELECT pg_advisory_xact_lock(hashtext({table}));
"""
WRITE = """
INSERT INTO {table} (id, name, price) SELECT id, name, price FROM json_populate_recordset(NULL::{table}, {rows})
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, price = excluded.price;
DELETE FROM {table} WHERE id IN (SELECT id FROM json_populate_recordset(NULL::{table}, {gone}));
COMMIT;
"""


def changes(batch):
    _, rows = look_up(batch)
    found = "[" + ",".join(row for row in rows if row) + "]"
    gone = json.dumps([key for (key, _), row in zip(batch.values(), rows) if not row])
    return WRITE.format(table=TABLE, rows=literal(found), gone=literal(gone))


def write(batch):
    command, environment = psql("COPY_URL")
    with subprocess.Popen(command, env=environment, encoding="utf-8", stdin=PIPE, stdout=PIPE, stderr=PIPE) as copy:
        watch = threading.Timer(LIMIT_SECS, copy.kill)
        watch.daemon = True
        watch.start()
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and says below why
            print(FENCE.format_map({**os.environ, "table": literal(TABLE)}), file=copy.stdin, flush=True)
        fence, locked = copy.stdout.readline(), copy.stdout.readline()
        # Locked first, looked up second: whoever writes later has read later, so nothing old overwrites what is newer.
        _, errors = copy.communicate(changes(batch) if fence == "1\n" and locked else "")
    if copy.returncode != 0:
        give_up(errors or "the copy does not answer")
    if fence == "0\n":
        print("a later leader has written; if ZooKeeper was made anew, delete this partition from ksync_terms", file=sys.stderr)
        sys.exit(75)
    return []


if __name__ == "__main__":
    handle(write)
