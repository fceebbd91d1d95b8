"""Reads ZooKeeper's transaction logs: who led a seat when, and who wrote its offset."""

import bisect
import collections
import dataclasses
import struct

from world import Failure

CREATE, DELETE, SET_DATA, CHECK, MULTI, CREATE2 = 1, 2, 5, 13, 14, 15
CREATE_TTL, CREATE_CONTAINER, DELETE_CONTAINER = 21, 19, 20
ERROR, CLOSE_SESSION = -1, -11
CREATES = (CREATE, CREATE2, CREATE_TTL, CREATE_CONTAINER)
DELETES = (DELETE, DELETE_CONTAINER)


@dataclasses.dataclass(frozen=True)
class Operation:
    """A change of one node, or with `check` only a condition."""

    kind: str
    path: str
    data: bytes = b""


@dataclasses.dataclass(frozen=True)
class Txn:
    zxid: int
    session: int
    # Seconds since 1970, when the server that led took the request in.
    at: float
    # Of one request; none where a session was closed.
    operations: tuple
    is_multi: bool = False
    closes_session: bool = False


class Reader:
    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, layout):
        values = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return values if len(values) > 1 else values[0]

    def buffer(self):
        size = max(self.take(">i"), 0)
        self.at += size
        return self.data[self.at - size:self.at]

    def text(self):
        return self.buffer().decode()


def read(folder):
    """All transactions of some servers' logs, each of them once and in order.

    A single server may lack some: it got a snapshot in their place when it came back. And it may have some more, which were
    never committed: a leader that was cut off has logged them, and the others have gone on without.
    """
    found, logged, snapshots = {}, collections.defaultdict(list), collections.defaultdict(list)
    for file in sorted(folder.glob("zookeeper-*")):
        server, _, name = file.name.rpartition("-")
        if name.startswith("snapshot."):
            snapshots[server].append(int(name.removeprefix("snapshot."), 16))
        elif name.startswith("log."):
            for txn in read_one(file.read_bytes()):
                found[txn.zxid] = txn
                logged[server].append(txn.zxid)
    for zxids in logged.values():
        zxids.sort()
    passed_over = {zxid for zxid in found for server in logged if passes_over(zxid, logged[server], snapshots[server])}
    return [found[zxid] for zxid in sorted(found.keys() - passed_over)]


def without_gaps(txns):
    """The same, but fails where some are missing: the servers count them, from one on in each epoch."""
    counts = collections.Counter()
    for txn in txns:
        epoch, count = txn.zxid >> 32, txn.zxid & 0xFFFFFFFF
        if count != counts[epoch] + 1:
            raise Failure(f"ZooKeeper's logs have transaction {count} of epoch {epoch} after {counts[epoch]}")
        counts[epoch] = count
    return txns


def passes_over(zxid, logged, snapshots):
    """Whether a server has gone on without it: it has a later one next, and no snapshot in between that may hold it."""
    at = bisect.bisect_left(logged, zxid)
    following = logged[at:at + 1]
    return following not in ([], [zxid]) and not any(zxid <= snapshot < following[0] for snapshot in snapshots)


def read_one(data):
    reader = Reader(data)
    if len(data) < 16 or reader.take(">4siq")[0] != b"ZKLG":
        return
    # The file is made longer in advance, by zeros; a server that was killed leaves them, or half a record.
    while reader.at + 12 < len(data):
        _checksum, size = reader.take(">qi")
        end = reader.at + size
        if size <= 0 or end >= len(data) or data[end:end + 1] != b"B":
            return
        yield transaction(Reader(data, reader.at))
        reader.at = end + 1


def transaction(reader):
    session, _cxid, zxid, millis, kind = reader.take(">qiqqi")
    at = millis / 1000
    if kind == MULTI:
        parts = [(reader.take(">i"), Reader(reader.buffer())) for _ in range(reader.take(">i"))]
        # One that failed is in the log, too; it has changed nothing.
        failed = any(part == ERROR for part, _ in parts)
        operations = () if failed else tuple(operation(part, body) for part, body in parts)
        return Txn(zxid, session, at, operations, is_multi=True)
    if kind == CLOSE_SESSION:
        return Txn(zxid, session, at, (), closes_session=True)
    if kind in (*CREATES, *DELETES, SET_DATA):
        return Txn(zxid, session, at, (operation(kind, reader),))
    return Txn(zxid, session, at, ())


def operation(kind, reader):
    if kind in CREATES:
        return Operation("create", reader.text(), reader.buffer())
    if kind in DELETES:
        return Operation("delete", reader.text())
    if kind == SET_DATA:
        return Operation("set", reader.text(), reader.buffer())
    if kind == CHECK:
        return Operation("check", reader.text())
    return Operation(f"type {kind}", "")
