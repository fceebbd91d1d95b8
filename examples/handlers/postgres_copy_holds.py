#!/usr/bin/env python3
"""Tells ksync-stream --verify what the table of postgres_copy.py holds; its settings are those of that handler."""

import json
import os
import subprocess

from batch import TABLE, literal, psql
from holds import answer

ROW = f"SELECT json_build_array(id::text, to_jsonb(found)) FROM {TABLE} AS found"


def select(sql):
    command, environment = psql(os.environ["COPY_URL"])
    # By a cursor of psql: a table is larger than the memory.
    with subprocess.Popen([*command, "-v", "FETCH_COUNT=5000", "-c", sql], env=environment, stdout=subprocess.PIPE) as copy:
        yield from copy.stdout
    if copy.returncode != 0:
        raise SystemExit(75)  # psql has said why


def rows_of(keys):
    wanted = f"ARRAY(SELECT json_array_elements_text({literal(json.dumps(keys))})::int)"
    return dict(map(json.loads, select(f"{ROW} WHERE id = ANY ({wanted})")))


def all_keys():
    return (line.decode().strip() for line in select(f"SELECT id FROM {TABLE}"))


answer(rows_of, all_keys)
