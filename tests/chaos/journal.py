"""Journals: files of JSON lines, each of them on disk before its writer goes on."""

import json
import os
import time


class Journal:
    """May be written to by many processes at once: a line is one write at the end of the file."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, event, **members):
        line = json.dumps({"event": event, "at": time.time(), **members}, separators=(",", ":"))
        os.write(self.file, line.encode() + b"\n")
        os.fsync(self.file)


def entries(path):
    """The lines of a journal; none where nobody has written."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            yield json.loads(line)
