"""The reader of ZooKeeper's transaction logs, on bytes as ZooKeeper writes them."""

import contextlib
import struct
import tempfile
import unittest
from pathlib import Path

import txn_log
from txn_log import Operation
from txn_log import Txn
from world import Failure


def text(words):
    return struct.pack(">i", len(words)) + words.encode()


def record(kind, body, zxid=7, session=5):
    data = struct.pack(">qiqqi", session, 1, zxid, 1_500, kind) + body
    return struct.pack(">qi", 0, len(data)) + data + b"B"


def part(kind, body):
    return struct.pack(">ii", kind, len(body)) + body


HEADER = struct.pack(">4siq", b"ZKLG", 2, 0)
CHECKED = part(txn_log.CHECK, text("/leader/a") + struct.pack(">i", -1))
SET = text("/offset") + text("42") + struct.pack(">i", 3)


class Logs(unittest.TestCase):
    def read(self, *servers, snapshots=()):
        with tempfile.TemporaryDirectory() as folder:
            for number, data in enumerate(servers):
                Path(folder, f"zookeeper-{number}-log.1").write_bytes(data)
            for number, zxid in snapshots:
                Path(folder, f"zookeeper-{number}-snapshot.{zxid:x}").touch()
            return txn_log.read(Path(folder))

    def test_a_transaction_of_several_operations_is_read_with_its_fence(self):
        multi = struct.pack(">i", 2) + CHECKED + part(txn_log.SET_DATA, SET)
        operations = (Operation("check", "/leader/a"), Operation("set", "/offset", b"42"))
        self.assertEqual(self.read(HEADER + record(txn_log.MULTI, multi)), [Txn(7, 5, 1.5, operations, is_multi=True)])

    def test_a_transaction_that_was_refused_has_changed_nothing(self):
        refused = part(txn_log.ERROR, struct.pack(">i", -101))
        multi = struct.pack(">i", 2) + refused + refused
        self.assertEqual(self.read(HEADER + record(txn_log.MULTI, multi)), [Txn(7, 5, 1.5, (), is_multi=True)])

    def test_what_several_servers_have_is_told_once_and_in_order(self):
        first, second = (record(txn_log.SET_DATA, SET, zxid) for zxid in (1, 2))
        read = self.read(HEADER + second, HEADER + first + second, snapshots=[(0, 1)])
        self.assertEqual([txn.zxid for txn in read], [1, 2])

    def test_what_others_have_gone_on_without_was_never_committed(self):
        old, lost, new = (record(txn_log.SET_DATA, SET, zxid) for zxid in (0x100000001, 0x100000002, 0x200000001))
        for behind, zxids in [
            ([old + lost, old + new, old + new], [0x100000001, 0x200000001]),
            # It led on, and others got a snapshot; or nobody has gone on yet.
            ([old + lost + new, old + new, old + new], [0x100000001, 0x100000002, 0x200000001]),
            ([old + lost, old, old], [0x100000001, 0x100000002]),
        ]:
            snapshots = [(1, 0x100000002), (2, 0x100000002)] if behind[0] == old + lost + new else []
            read = self.read(*(HEADER + server for server in behind), snapshots=snapshots)
            self.assertEqual([txn.zxid for txn in read], zxids)

    def test_transactions_that_no_log_has_are_missed(self):
        for zxids, *missing in (
            ((0x100000001, 0x100000002, 0x200000001, 0x500000001),),
            ((0x100000001, 0x100000003), "transaction 3 of epoch 1 after 1"),
            ((0x100000001, 0x200000002), "transaction 2 of epoch 2 after 0"),
        ):
            txns = [Txn(zxid, 5, 1.5, ()) for zxid in zxids]
            with self.assertRaisesRegex(Failure, *missing) if missing else contextlib.nullcontext():
                self.assertEqual(txn_log.without_gaps(txns), txns)

    def test_zeros_and_half_a_record_end_a_log(self):
        whole = record(txn_log.SET_DATA, SET)
        for rest in (bytes(64), whole[:-5], whole[:-1] + bytes(64)):
            self.assertEqual(len(self.read(HEADER + whole + rest)), 1)

    def test_the_end_of_a_session_is_told(self):
        (closed,) = self.read(HEADER + record(txn_log.CLOSE_SESSION, b""))
        self.assertTrue(closed.closes_session)


if __name__ == "__main__":
    unittest.main()
