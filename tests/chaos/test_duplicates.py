"""What is done twice, and when that may be."""

import unittest

from history import Fault
from history import Op
from small_history import BEGIN
from small_history import DELAYER
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import log
from small_history import run


class Duplicates(SmallHistory):
    def test_6_a_new_leader_that_repeats_a_batch_after_a_fault(self):
        self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, ["index-1"]))
        self.expect()

    def test_6_a_new_leader_that_was_held_up_for_long_after_the_fault(self):
        self.history.settings.session_secs = 1
        self.follow(0, Fault("kill", BEGIN + 2.5, BEGIN + 2.6, ["index-1"]))
        self.expect()

    def test_6_a_new_leader_that_repeats_a_batch_though_no_fault_was_near(self):
        self.follow(0, Fault("terminate", BEGIN + 2, BEGIN + 2.5, ["index-1"]))
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_a_fault_that_hit_processes_of_another_kind_alone_excuses_nothing(self):
        self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, ["cache-1"]))
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_nor_does_a_clock_that_jumps(self):
        self.follow(0, Fault("clock jumps", BEGIN + 2, BEGIN + 2.5, ["index-1"]))
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_a_new_leader_that_repeats_more_than_a_batch(self):
        self.history.settings.batch_size = 0
        self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, ["index-1"]))
        self.expect((6, "repeats 1 records from 0"))

    def test_6_a_leader_that_repeats_what_it_has_done(self):
        self.history.runs[1] = run(0, 2, 8)
        finish(self.history)
        self.expect((6, "of the same leader repeats 1 records from 0"))

    def send_on_again(self, *faults):
        """Both delay messages, by a second delayer."""
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (1, 1, 7.9), (2, 2, 8))]
        self.history.runs[1] = run(1, 4, 8.1)
        self.replace_commit(8.6, commits(INDEX, 5, 8.7))
        self.history.faults = list(faults)
        finish(self.history)

    def test_6_a_delayer_that_sends_on_again_what_was_not_committed_when_another_one_was_killed(self):
        self.send_on_again(Fault("kill", BEGIN + 7.15, BEGIN + 7.5, ["delayer-1"]))
        self.expect()

    def test_6_a_delayer_that_sends_on_again_after_a_clean_end_of_another_one(self):
        self.send_on_again(Fault("terminate", BEGIN + 7.15, BEGIN + 7.5, ["delayer-1"]))
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near, the first of them record 1 of "
                        "transaction 1"))

    def test_6_a_delayer_that_sends_on_again_though_no_delayer_was_hit(self):
        self.send_on_again(Fault("kill", BEGIN + 7.15, BEGIN + 7.5, ["index-1"]))
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near"))

    def test_6_a_delayer_that_sends_on_again_what_was_sent_on_long_before_a_fault(self):
        self.history.settings.session_secs = 1
        self.send_on_again(Fault("kill", BEGIN + 7.85, BEGIN + 7.88, ["delayer-1"]))
        self.expect((6, "delayer/0: 1 delay messages were sent on again, which was done 1.8 s before a fault"))

    def test_6_an_instant_message_that_comes_later_than_the_delay_is_not_the_delayers(self):
        # The transaction is so long that its delay message is sent again.
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 3.6))]
        self.history.instant = [log((1, 1, 6.1), (1, 1, 6.3), (2, 2, 7.1), (1, 1, 8.7))]
        self.history.ops[1] = Op(1, 1, BEGIN + 1.1, BEGIN + 6.2, status=0)
        self.history.runs = [run(0, 3, 9)]
        self.replace_commit(2.6)
        self.replace_commit(8.6, commits(DELAYER, 3, 8.8), commits(INDEX, 4, 9.6))
        finish(self.history)
        self.expect()
        # A transaction has one for each record, and none if it has not committed.
        self.history.instant = [log((1, 1, 6.1), (1, 1, 6.3), (2, 2, 7.1), (1, 1, 8.7), (1, 1, 8.8))]
        self.history.runs = [run(0, 4, 9)]
        self.replace_commit(9.6, commits(INDEX, 5, 9.6))
        finish(self.history)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though no fault was near"))
        self.history.ops[1].committed, self.history.ops[1].status = None, 1
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near"))


if __name__ == "__main__":
    unittest.main()
