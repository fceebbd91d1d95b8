#!/usr/bin/env python3
"""Keeps the rows of a table of Postgres in Redis, as JSON, products:KEY: a handler for ksync-consume.

REDIS_URL (redis://localhost:6379, or redis://:password@..), one server; the rest is in batch.py.

An application that finds nothing reads the row, and may be late: it would put an old row over the handler's, or one back
that is gone, for good. So the handler never deletes, a row that is gone becomes an empty text; and the application never
sets, it adds what it has read from the primary:

    HGET products:7 row            an empty text: there is no such row; nothing: read it, and then
    HSETNX products:7 row JSON     1: EXPIRE products:7 86400; 0: the handler or somebody else was faster, HGET again

That holds for a day (KEPT) if Redis evicts what was not used for long (maxmemory-policy allkeys-lru), but not through a
restart, after which it had better be empty: what it has saved is old.
"""

import os
import socket
from urllib.parse import unquote, urlsplit

from batch import TABLE, handle, look_up

KEPT = 86400
AT = urlsplit(os.environ.get("REDIS_URL", "redis://localhost:6379"))
# Whoever has read later wins, and not whoever writes last.
SET = """
if tonumber(redis.call('HGET', KEYS[1], 'version') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'row', ARGV[2])
return redis.call('EXPIRE', KEYS[1], ARGV[3])"""


def command(*words):
    words = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def write(batch):
    version, rows = look_up(batch)
    login = command("AUTH", AT.username or "default", unquote(AT.password)) if AT.password else b""
    sets = [command("EVAL", SET, 1, f"{TABLE}:{id}", version, row or "", KEPT) for id, row in zip(batch, rows)]
    with socket.create_connection((AT.hostname, AT.port or 6379), timeout=10) as redis:
        redis.sendall(login + b"".join(sets))
        answers = redis.makefile("rb")
        if login:
            answers.readline()  # after a wrong one all others say so, too
        for _, offset in batch.values():
            answer = answers.readline()
            if b"WRONGTYPE" in answer:
                yield offset, "the key is somebody else's"
            elif not answer.startswith(b":"):
                raise OSError(answer or "Redis has closed the connection")


handle(write)
