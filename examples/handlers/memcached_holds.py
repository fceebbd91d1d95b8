#!/usr/bin/env python3
"""Tells ksync-stream --verify --cache which rows, as JSON, applications keep in memcached beside memcached.py; its settings are
those of that handler."""

from urllib.parse import unquote

from batch import TABLE
from holds import answer, parse
from memcached import LONGEST, SERVERS, connect, key_of


def rows_of(keys):
    keys = [key for key in keys if len(key_of(key).encode()) <= LONGEST]
    for server in SERVERS:
        with connect(server) as memcached:
            memcached.sendall("".join(f"get {key_of(key)}\r\n" for key in keys).encode())
            answers = memcached.makefile("rb")
            for key in keys:
                while (head := answers.readline()) != b"END\r\n":
                    if not head.startswith(b"VALUE "):
                        raise OSError(head or "memcached has closed the connection")
                    value = answers.read(int(head.split()[3]) + 2)[:-2]
                    if value:  # an empty one is not filled yet
                        yield key, parse(value)


def all_keys():
    for server in SERVERS:
        with connect(server) as memcached:
            memcached.sendall(b"lru_crawler metadump all\r\n")
            for line in memcached.makefile("rb"):
                if line == b"END\r\n":
                    break
                if not line.startswith(b"key="):
                    raise OSError(line)
                # key=products%3A7 exp=..: what memcached quotes, and in that what its handler has quoted
                key = unquote(unquote(line.split()[0].decode().removeprefix("key=")))
                if key.startswith(f"{TABLE}:"):
                    yield key.removeprefix(f"{TABLE}:")
            else:
                raise OSError("memcached has closed the connection")


answer(rows_of, all_keys)
