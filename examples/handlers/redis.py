#!/usr/bin/env python3
"""Keeps the rows of a table of Postgres in Redis, as JSON, products:KEY: a handler for ksync-consume.

REDIS_URL (redis://localhost:6379, or redis://user:password@../1 for database 1), one server, no TLS; the rest is in batch.py.

An application that finds nothing, reads the row and is late would put an old row, or one that is gone, over the handler's, for
good. So the handler never deletes: what is gone becomes an empty text; and an application only adds what it has read:

    HGET products:7 row            an empty text: there is no such row; nothing: read it, and then
    HSETNX products:7 row JSON     1: EXPIRE products:7 86400; 0: the handler or somebody else was faster, HGET again

That holds for a day (KEPT) with maxmemory-policy allkeys-lru, and until a restart: then Redis had better be empty.
"""

import os
import re
import socket
from urllib.parse import unquote, urlsplit

from batch import TABLE, handle, look_up
from postgres import misconfigured

KEPT = 86400
AT = urlsplit(os.environ.get("REDIS_URL", "redis://localhost:6379"))
if AT.scheme != "redis":
    misconfigured("REDIS_URL is to be redis://..; this handler knows no TLS and no sockets of Unix")
REFUSED = "NOAUTH|NOPERM|WRONGPASS|ERR (AUTH|Client sent AUTH|invalid|DB index)"  # what does not pass by itself
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
    if kind == b"-" and re.match(REFUSED, value):
        misconfigured(f"Redis: {value}")
    return OSError(value) if kind == b"-" else value


def ask(commands):
    """The answer to each; an error is one, too."""
    opening = [("AUTH", unquote(AT.username or "default"), unquote(AT.password))] if AT.password else []
    opening += [("SELECT", AT.path[1:])] if AT.path[1:] else []
    with socket.create_connection((AT.hostname, AT.port or 6379), timeout=10) as redis:
        redis.sendall(b"".join(command(*words) for words in [*opening, *commands]))
        stream = redis.makefile("rb")
        if errors := [answer for _ in opening if isinstance(answer := parse(stream), OSError)]:
            raise errors[0]
        return [parse(stream) for _ in commands]


def write(batch):
    version, rows = look_up(batch)
    sets = [("EVAL", SET, 1, f"{TABLE}:{id}", version, row or "", KEPT) for id, row in zip(batch, rows)]
    answers = ask(sets)
    for (_, offset), answer in zip(batch.values(), answers):
        if "WRONGTYPE" in str(answer):
            yield offset, "the key is somebody else's"
        elif isinstance(answer, OSError):
            raise answer
    if refused := answers.count("0"):
        print(f"{refused} of {len(answers)} rows: Redis has what was read later")


if __name__ == "__main__":
    handle(write)
