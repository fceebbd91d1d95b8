#!/usr/bin/env python3
"""Tells ksync-stream --verify --cache what redis.py has kept; its settings are those of that handler."""

from batch import TABLE
from holds import answer, parse
from redis import ask

PREFIX = f"{TABLE}:"


def look(commands):
    for answer in ask(commands):
        if isinstance(answer, OSError) and "WRONGTYPE" not in str(answer):
            raise answer
        # Of another type it is somebody else's.
        yield None if isinstance(answer, OSError) else answer


def rows_of(keys):
    rows = look([("HGET", PREFIX + key, "row") for key in keys])
    # An empty text says that there is no such row.
    return ((key, parse(row) if row else None) for key, row in zip(keys, rows) if row is not None)


def all_keys():
    cursor = None
    while cursor != "0":
        [[cursor, found]] = look([("SCAN", cursor or 0, "MATCH", f"{PREFIX}*", "COUNT", 5000)])
        yield from (key for key, row in rows_of([key.removeprefix(PREFIX) for key in found]) if row is not None)


answer(rows_of, all_keys)
