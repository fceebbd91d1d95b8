#!/usr/bin/env python3
"""Tells ksync-stream --verify --cache which rows, as JSON, applications keep in memcached beside memcached.py; its settings are
those of that handler."""

import json
from urllib.parse import unquote

from batch import TABLE
from holds import answer
from memcached import SERVERS, connect, key_of


def rows_of(keys):
    found = {}
    for server in SERVERS:
        with connect(server) as memcached:
            memcached.sendall("".join(f"get {key_of(key)}\r\n" for key in keys).encode())
            answers = memcached.makefile("rb")
            for key in keys:
                while (head := answers.readline()) != b"END\r\n":
                    value = answers.read(int(head.split()[3]) + 2)[:-2]
                    if value:  # an empty one is not filled yet
                        found[key] = json.loads(value)
    return found


def all_keys():
    for server in SERVERS:
        with connect(server) as memcached:
            memcached.sendall(b"lru_crawler metadump all\r\n")
            for line in memcached.makefile("rb"):
                if line == b"END\r\n":
                    break
                # key=products%253A7 exp=.., quoted once more
                key = unquote(line.split()[0].decode().removeprefix("key="))
                if key.startswith(f"{TABLE}:"):
                    yield unquote(key.removeprefix(f"{TABLE}:"))


answer(rows_of, all_keys)
