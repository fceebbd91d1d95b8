#!/usr/bin/env python3
"""Tells ksync-stream --verify what the table of postgres_copy.py holds; its settings are those of that handler."""

import contextlib
import json
from subprocess import PIPE, Popen

from batch import TABLE
from holds import answer, parse
from postgres import give_up, literal, psql

ROW = f"SELECT id, to_jsonb(found) FROM {TABLE} AS found"


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
    wanted = f"ARRAY(SELECT json_array_elements_text({literal(json.dumps(keys))})::int)"
    return ((key, parse(row)) for key, row in select(f"{ROW} WHERE id = ANY ({wanted})"))


def all_keys():
    return (key for [key] in select(f"SELECT id FROM {TABLE}"))


answer(rows_of, all_keys)
