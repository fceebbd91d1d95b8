#!/usr/bin/env python3
"""Deletes from memcached what has changed in a table, products:KEY: a handler for ksync-consume.

MEMCACHED (localhost:11211), several servers as a,b; TABLE and KEY as in batch.py. It needs no database.

It sets nothing: a deletion does no harm twice, or late, or by a leader that was deposed. But an application that finds nothing,
reads the row, and is late would put an old row back after the deletion, for good. So it may keep a row only by a number that
it was given before it read, all of that on one connection, as the numbers begin anew at a restart:

    gets products:7                      a row: take it; an empty value: go on with its number
    add products:7 0 10 0                an empty value, for 10 s; NOT_STORED: somebody else was first
    gets products:7                      the number (cas unique); read the row from the primary, in a new transaction
    cas products:7 0 3600 LENGTH NUMBER  EXISTS, NOT_FOUND: it went with a deletion; use the row, but do not keep it

That holds however late anybody is, and whatever memcached evicts.

The application has to write KEY as it is done here: as in the record's key, but %, blanks and control characters, of which
memcached takes none, as in a URL: products:a@b%20é for a@b é, products:50%25 for 50%.
"""

import os
import re
import socket

from batch import TABLE, handle

LONGEST = 250  # of its keys
SERVERS = os.environ.get("MEMCACHED", "localhost:11211").split(",")


def connect(server):
    host, port = server.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def key_of(id):
    # A space or a line break in a key would be another command.
    return re.sub(r"[\0- \x7f%]", lambda found: f"%{ord(found[0]):02X}", f"{TABLE}:{id}")


def delete(server, keys):
    with connect(server) as memcached:
        memcached.sendall("".join(f"delete {key}\r\n" for key in keys).encode())
        answers = memcached.makefile("rb")
        for _ in keys:
            answer = answers.readline()
            if answer not in (b"DELETED\r\n", b"NOT_FOUND\r\n"):
                raise OSError(answer or "memcached has closed the connection")


def write(batch):
    keys = []
    for id, (_, offset) in batch.items():
        key = key_of(id)
        if len(key.encode()) <= LONGEST:
            keys.append(key)
        else:
            yield offset, "memcached takes no such long key"
    for server in SERVERS:  # whichever of them the application's client takes for a key
        delete(server, keys)


if __name__ == "__main__":
    handle(write)
