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


def parse(stream):
    head = stream.readline()
    if not head.endswith(b"\r\n"):
        raise OSError("Redis has closed the connection")
    kind, value = head[:1], head[1:-2].decode()
    if kind == b"*":
        return [parse(stream) for _ in range(int(value))]
    if kind == b"$":
        return None if value == "-1" else stream.read(int(value) + 2)[:-2].decode()
    return OSError(value) if kind == b"-" else value


def ask(commands):
    """The answer to each; an error is one, too."""
    login = [("AUTH", AT.username or "default", unquote(AT.password))] if AT.password else []
    with socket.create_connection((AT.hostname, AT.port or 6379), timeout=10) as redis:
        redis.sendall(b"".join(command(*words) for words in [*login, *commands]))
        answers = redis.makefile("rb")
        # After a wrong login all others say so, too.
        return [parse(answers) for _ in [*login, *commands]][len(login) :]


def write(batch):
    version, rows = look_up(batch)
    sets = [("EVAL", SET, 1, f"{TABLE}:{id}", version, row or "", KEPT) for id, row in zip(batch, rows)]
    for (_, offset), answer in zip(batch.values(), ask(sets)):
        if "WRONGTYPE" in str(answer):
            yield offset, "the key is somebody else's"
        elif isinstance(answer, OSError):
            raise answer


if __name__ == "__main__":
    handle(write)
