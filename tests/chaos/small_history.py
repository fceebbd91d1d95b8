"""A small history that is right, for tests that make one thing wrong in it."""

import json
import unittest

from checker import check
from history import History
from history import Log
from history import Loss
from history import Op
from history import Run
from history import Seat
from history import Settings
from txn_log import Operation
from txn_log import Txn

BEGIN = 1000.0
INDEX, DELAYER = Seat("index", 0), Seat("delayer", 0)
DELAY_SECS = 5
SESSIONS = {INDEX: 70, DELAYER: 80}
TERMS = {INDEX: 1, DELAYER: 2}


def log(*records):
    """Of (id, op, seconds after the beginning)."""
    made = Log()
    for id, op, secs in records:
        made.add(id, op, round((BEGIN + secs) * 1000), checksum=100 * id + op)
    return made


def folder(seat):
    topic = "chaos-delay" if seat.name == "delayer" else "chaos"
    return f"/kafka_sync/consumer/{topic}/{seat.partition}/{seat.name}"


def candidate(seat, number):
    return f"{folder(seat)}/leader/{'ab' * 16}_{number:010}"


def queues(seat, secs=0.0, number=0, session=None, term=None):
    operation = Operation("create", candidate(seat, number))
    return Txn(term or TERMS[seat], session or SESSIONS[seat], BEGIN + secs, (operation,))


def commits(seat, offset, secs, number=0, session=None, term=None):
    state = json.dumps({"v": 1, "offset": offset, "term": term or TERMS[seat]}).encode()
    operations = (
        Operation("check", candidate(seat, number)),
        Operation("set", f"{folder(seat)}/offset", str(offset).encode()),
        Operation("set", f"{folder(seat)}/state", state),
    )
    return Txn(1000 + round(secs * 100), session or SESSIONS[seat], BEGIN + secs, operations, is_multi=True)


def run(first, last, secs, **other):
    """Takes half a second. What has committed by then has a lower number than 100 times the time."""
    values = dict(seat=INDEX, run=f"run-{secs}", term=TERMS[INDEX], first=first, last=last, begun=BEGIN + secs,
                  ended=BEGIN + secs + 0.5, outcome="done", snapshot=f"{round(100 * secs)}:{round(100 * secs)}:")
    return Run(**{**values, **other})


def right():
    """Two transactions, of records 1 and 2; the second one is announced by its delay message alone."""
    history = History(Settings(DELAY_SECS, session_secs=4, batch_size=2, partitions=1), begun=BEGIN, ended=BEGIN + 20)
    history.delayed = [log((1, 1, 1), (2, 2, 2))]
    history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1))]
    history.changes = [(1, 1, 1, 120), (2, 1, 2, 220)]
    history.primary, history.copies = {1: 1, 2: 1}, {"index": {1: 1, 2: 1}}
    history.accepted = [(INDEX, 1, 0, 0), (INDEX, 1, 1, 2)]
    history.runs = [run(0, 0, 2), run(1, 2, 8)]
    history.ops = {1: Op(1, 1, BEGIN + 1.1, BEGIN + 1.3, status=0, ended=BEGIN + 1.6), 2: Op(2, 1, BEGIN + 2.1)}
    history.txns = [
        queues(INDEX), queues(DELAYER),
        commits(INDEX, 0, 0.1), commits(DELAYER, 0, 0.2),
        commits(INDEX, 1, 2.6), commits(DELAYER, 1, 6.2), commits(DELAYER, 2, 7.2), commits(INDEX, 3, 8.6),
    ]
    finish(history)
    return history


def finish(history):
    for one in history.runs:
        one.sum = history.instant[0].sum(one.first, min(one.last, len(history.instant[0]) - 1))


class SmallHistory(unittest.TestCase):
    def setUp(self):
        self.history = right()

    def expect(self, *points_and_texts):
        """Exactly these points are violated, each by a text that has this in it."""
        found = check(self.history).violations
        self.assertEqual({violation.point for violation in found}, {point for point, _ in points_and_texts}, found)
        for point, text in points_and_texts:
            said = [violation.text for violation in found if violation.point == point]
            self.assertTrue(any(text in one for one in said), said)

    def replace_commit(self, secs, *others):
        self.history.txns = [txn for txn in self.history.txns if txn.at != BEGIN + secs]
        self.history.txns = sorted([*self.history.txns, *others], key=lambda txn: txn.at)

    def lose(self, seat, secs, why="the connection to ZooKeeper broke"):
        """A lease."""
        self.history.lost_leases.append(Loss(seat, BEGIN + secs, f"{seat.name}-1", why))

    def follow(self, first, *faults):
        """A second leader, which begins there; where that is 0, the first one has died before its commit."""
        if first == 0:
            self.replace_commit(2.6)
        self.replace_commit(8.6, queues(INDEX, 2.7, 1, 71, 50), Txn(51, 70, BEGIN + 2.8, (), closes_session=True),
                            commits(INDEX, first, 2.9, 1, 71, 50), commits(INDEX, 3, 8.6, 1, 71, 50))
        self.history.runs[1] = run(first, 2, 8, term=50)
        self.history.accepted[1] = (INDEX, 50, first, 2)
        self.history.faults = list(faults)
        finish(self.history)
