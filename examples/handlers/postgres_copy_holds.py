#!/usr/bin/env python3
"""Tells ksync-stream --verify what the table of postgres_copy.py holds; its settings are those of that handler."""

import json
import os
import subprocess

from batch import TABLE, literal, psql
from holds import answer, parse

ROW = f"SELECT id, to_jsonb(found) FROM {TABLE} AS found"


def select(sql):
    command, environment = psql(os.environ["COPY_URL"])
    # By a cursor of psql: a table is larger than the memory.
    command += ["-v", "FETCH_COUNT=5000", "-F", "\t"]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, encoding="utf-8", **streams) as copy:
        copy.stdin.write(sql + ";")
        copy.stdin.close()
        yield from (line.rstrip("\n").split("\t", 1) for line in copy.stdout)
    if copy.returncode != 0:
        raise SystemExit(75)  # psql has said why


def rows_of(keys):
    wanted = f"ARRAY(SELECT json_array_elements_text({literal(json.dumps(keys))})::int)"
    return {key: parse(row) for key, row in select(f"{ROW} WHERE id = ANY ({wanted})")}


def all_keys():
    return (key for [key] in select(f"SELECT id FROM {TABLE}"))


answer(rows_of, all_keys)
