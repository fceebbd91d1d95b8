#!/usr/bin/env python3
"""Keeps a copy of the table products: what a handler for ksync-consume can look like.

Reads a batch from stdin, looks its products up in the SQLite file PRIMARY_DB, and brings the file
SECONDARY_DB up to date. Any exception ends it with status 1; then the whole batch comes again,
which does no harm.
"""

import json
import os
import sqlite3
import sys
from pathlib import Path

LOOK_UP = "SELECT id, name, price FROM products WHERE id IN (SELECT value FROM json_each(?))"


def look_up(ids):
    # Read only: a wrong path is an error then, and not an empty database where all products are missing.
    url = Path(os.environ["PRIMARY_DB"]).absolute().as_uri() + "?mode=ro"
    return sqlite3.connect(url, uri=True, timeout=30).execute(LOOK_UP, [json.dumps(ids)]).fetchall()


def id_of(record):
    # A tombstone has no payload; its key says what was deleted.
    return int(record["key"] if record["payload"] is None else record["payload"]["id"])


def update(look_up):
    ids = sorted({id_of(json.loads(line)) for line in sys.stdin})
    secondary = sqlite3.connect(os.environ["SECONDARY_DB"], timeout=30, isolation_level=None)
    secondary.execute("PRAGMA journal_mode = WAL")
    # Locked first, looked up second: whoever writes later has read later, so nothing old overwrites what is newer.
    secondary.execute("BEGIN IMMEDIATE")
    rows = look_up(ids)
    secondary.executemany("INSERT OR REPLACE INTO products (id, name, price) VALUES (?, ?, ?)", rows)
    missing = set(ids) - {row[0] for row in rows}
    secondary.executemany("DELETE FROM products WHERE id = ?", [[id] for id in missing])
    secondary.execute("COMMIT")


if __name__ == "__main__":
    update(look_up)
