"""Just enough of Postgres' protocol; psql for each batch would cost more than the batch."""

import socket
import struct

PROTOCOL = 196608


class Refused(Exception):
    """What the server says an error is."""


class Postgres:
    """A connection, without a password."""

    def __init__(self, url):
        user, _, place = url.removeprefix("postgres://").partition("@")
        address, _, database = place.partition("/")
        host, _, port = address.partition(":")
        # No answer is ever late but one that waits for another transaction's lock.
        self.connection = socket.create_connection((host, int(port)), timeout=60)
        self.stream = self.connection.makefile("rb")
        names = f"user\0{user}\0database\0{database}\0\0".encode()
        self.connection.sendall(struct.pack(">ii", 8 + len(names), PROTOCOL) + names)
        self.answer()

    def run(self, sql):
        """Runs statements, and gives the rows of the last one as texts."""
        text = sql.encode() + b"\0"
        self.connection.sendall(b"Q" + struct.pack(">i", 4 + len(text)) + text)
        return self.answer()

    def answer(self):
        rows, error = [], None
        while True:
            kind, body = self.message()
            if kind == b"T":
                rows = []
            elif kind == b"D":
                rows.append(columns(body))
            elif kind == b"E":
                error = error or next(field[1:] for field in body.split(b"\0") if field[:1] == b"M")
            elif kind == b"Z":
                if error:
                    raise Refused(error.decode())
                return rows

    def message(self):
        head = self.stream.read(5)
        if len(head) < 5:
            raise ConnectionError("Postgres has closed the connection")
        kind, size = head[:1], struct.unpack(">i", head[1:])[0]
        return kind, self.stream.read(size - 4)


def columns(body):
    values, at = [], 2
    for _ in range(*struct.unpack_from(">h", body)):
        (size,) = struct.unpack_from(">i", body, at)
        at += 4
        values.append(None if size < 0 else body[at:at + size].decode())
        at += max(size, 0)
    return values
