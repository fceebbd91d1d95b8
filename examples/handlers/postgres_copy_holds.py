#!/usr/bin/env python3
"""Tells ksync-stream --verify what the table of postgres_copy.py holds; its settings are those of that handler."""

import contextlib
import json
from subprocess import PIPE, Popen

from batch import TABLE
from holds import answer, parse
from postgres import give_up, literal, psql


def select(sql):
    command, environment = psql("COPY_URL")
    # By a cursor of psql: a table is larger than the memory.
    command += ["-v", "FETCH_COUNT=5000", "-F", "\t"]
    with Popen(command, env=environment, encoding="utf-8", stdin=PIPE, stdout=PIPE, stderr=PIPE) as copy:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and says below why
            with copy.stdin:
                copy.stdin.write(sql + ";")
        yield from (line.rstrip("\n").split("\t", 1) for line in copy.stdout)
        errors = copy.stderr.read()
    if copy.returncode != 0:
        give_up(errors)


def rows_of(keys):
    # Of whatever type the key is: its text becomes that.
    wanted = literal(json.dumps([{"id": key} for key in keys]))
    rows = f"json_populate_recordset(NULL::{TABLE}, {wanted}) AS wanted JOIN {TABLE} AS found USING (id)"
    return ((json.loads(key), parse(row)) for key, row in select(f"SELECT to_json(id::text), to_jsonb(found) FROM {rows}"))


def all_keys():
    return (json.loads(key) for [key] in select(f"SELECT to_json(id::text) FROM {TABLE}"))


answer(rows_of, all_keys)
