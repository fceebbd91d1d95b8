"""Delay messages that are sent on late, and when that may be."""

import unittest

from checker import check
from history import Fault
from lateness import Lateness
from messages import Messages
from small_history import BEGIN
from small_history import DELAYER
from small_history import DELAY_SECS
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import log
from small_history import queues
from small_history import run

OUTAGE = Fault("broker killed", BEGIN + 20, BEGIN + 40, ["kafka-1"])


def catches_up(due):
    """What was due when the outage began is sent on when it is over, what was due 38 s later a second late."""
    return 0.1 if due < 20 else max(0.1, 30 - due / 2)


class Late(SmallHistory):
    def test_8_delay_messages_that_are_late(self):
        self.history.instant = [log((1, 1, 1.5), (1, 1, 12.1), (2, 2, 12.2))]
        self.history.runs[1] = run(1, 2, 13)
        self.history.txns = [*self.history.txns[:5], commits(DELAYER, 2, 12.3), commits(INDEX, 3, 13.6)]
        finish(self.history)
        self.expect((8, "of 2 delay messages due while all was well one in a thousand was later than 6.1 s; the latest, that of "
                        "delayer/0 at 0 (record 1 of transaction 1), was due at 1006.000 and 6.1 s late"))
        (violation,) = check(self.history).violations
        self.assertEqual(violation.at, BEGIN + 6)

    def flow(self, secs, *faults, late=lambda due: 0.1):
        """Two delay messages a second, and nothing else; each is late by so much."""
        due = [DELAY_SECS + number / 2 for number in range(2 * secs)]
        sent = [at + late(at) for at in due]
        self.history.delayed = [log(*((1, number, at - DELAY_SECS) for number, at in enumerate(due)))]
        self.history.instant = [log(*((1, number, at) for number, at in enumerate(sent)))]
        self.history.changes, self.history.runs, self.history.accepted = [], [], []
        self.history.primary, self.history.copies, self.history.ops = {}, {}, {}
        passed = [commits(DELAYER, number + 1, at + 0.1) for number, at in enumerate(sent)]
        self.history.txns = [queues(DELAYER), commits(DELAYER, 0, 0.2), *passed]
        self.history.faults, self.history.ended = list(faults), BEGIN + secs + 20

    def judged(self):
        """How many of them."""
        return len(Lateness(self.history, Messages(self.history)).millis)

    def test_8_messages_that_are_late_while_a_delayer_catches_up(self):
        self.flow(100, OUTAGE, late=catches_up)
        self.expect()
        # Two a second: those to 5 s before the outage, and from 5 s on in which none was late.
        self.assertEqual(self.judged(), 2 * (15 - 5) + 2 * (105 - 63))

    def test_8_some_that_are_on_time_for_a_moment_are_no_sign_that_it_has_caught_up(self):
        for again, *violations in ((62,), (64, (8, "one in a thousand was later than 8.0 s"))):
            self.flow(70, OUTAGE, late=lambda due: catches_up(due) if due < again else 8)
            self.expect(*violations)

    def test_8_messages_that_are_late_when_a_delayer_has_caught_up(self):
        self.flow(100, OUTAGE, late=lambda due: 6.5 if due >= 60 else 0.1)
        self.expect((8, "one in a thousand was later than 6.5 s; the latest, that of delayer/0 at 110"))
        # For a machine that stands still nobody can help it.
        self.history.notes = [{"event": "stalled", "at": BEGIN + secs, "secs": 0.6} for secs in range(60, 120)]
        self.expect()

    def test_8_a_delayer_that_does_not_catch_up_in_a_minute_or_as_long_as_the_outage_was(self):
        late = lambda due: 6.5 if due >= 20 else 0.1
        for healed, *violations in ((40, (8, "later than 6.5 s")), (70,)):
            self.flow(100, Fault("broker killed", BEGIN + 20, BEGIN + healed, ["kafka-1"]), late=late)
            self.expect(*violations)

    def test_8_it_is_judged_while_others_are_hit(self):
        for member, *violations in (("delayer-1",), ("index-1", (8, "later than 6.5 s"))):
            kills = (Fault("kill", BEGIN + secs, BEGIN + secs + 4, [member]) for secs in range(5, 60, 5))
            self.flow(40, *kills, late=lambda due: 6.5 if due >= 30 else 0.1)
            self.expect(*violations)

    def test_what_was_judged_is_counted(self):
        self.flow(30, Fault("kill", BEGIN + 20, BEGIN + 21, ["index-1"]))
        self.history.copies = {"index": {}}
        self.assertEqual(check(self.history).judged, (60, (50 - 14) + (20 - 14) + (29 - 14)))


if __name__ == "__main__":
    unittest.main()
