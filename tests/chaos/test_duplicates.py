"""What is done twice, and when that may be."""

import unittest

from history import Fault
from history import Op
from history import Seat
from small_history import BEGIN
from small_history import DELAYER
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import log
from small_history import right
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

    def test_6_a_new_leader_that_repeats_what_could_not_be_committed_before_the_lease_was_lost(self):
        self.follow(0)
        self.lose(INDEX, 2.65)
        self.expect()

    def test_6_a_lease_that_was_lost_of_another_seat_or_at_another_time_excuses_nothing(self):
        for seat, secs in ((Seat("index", 1), 2.65), (Seat("cache", 0), 2.65), (INDEX, 1.9), (INDEX, 8.1)):
            self.history = right()
            self.follow(0)
            self.lose(seat, secs)
            self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_nor_does_it_excuse_more_than_a_batch(self):
        self.history.settings.batch_size = 0
        self.follow(0)
        self.lose(INDEX, 2.65)
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_nor_what_the_same_leader_repeats(self):
        self.replace_commit(2.6)
        self.history.runs[1] = run(0, 2, 8)
        finish(self.history)
        self.lose(INDEX, 2.65)
        self.expect((6, "of the same leader repeats 1 records from 0"))

    def test_6_what_was_committed_comes_again_although_a_lease_was_lost_and_a_fault_was_near(self):
        self.follow(0, Fault("kill", BEGIN + 2.61, BEGIN + 2.7, ["index-1"]))
        self.lose(INDEX, 2.65)
        self.replace_commit(2.9, commits(INDEX, 1, 2.6))
        self.expect((6, "index/0: run run-8 began at 0 when 1 was committed"))
        # One that fails was given them, too.
        self.history.runs.insert(1, run(0, 2, 7, term=50, outcome="fails before"))
        self.history.runs[2] = run(1, 2, 8, term=50)
        finish(self.history)
        self.expect((6, "index/0: run run-7 began at 0 when 1 was committed"))

    def test_6_only_a_stop_excuses_what_an_older_leader_repeats_after_a_newer_one(self):
        self.follow(1, Fault("stop", BEGIN + 2.5, BEGIN + 9.2, ["index-1"]))
        self.history.runs.append(run(1, 2, 9))
        finish(self.history)
        self.expect()
        self.history.faults = []
        self.lose(INDEX, 8.7)
        self.expect((6, "repeats 2 records from 1"), (7, "of term 1 began 6.2 s after its candidate was gone"))

    def test_6_a_leader_that_repeats_what_it_has_done(self):
        self.history.runs[1] = run(0, 2, 8)
        finish(self.history)
        self.expect((6, "of the same leader repeats 1 records from 0"))

    def send_on_again(self, *faults):
        """Both delay messages, by a second delayer, when neither was committed."""
        self.replace_commit(6.2)
        self.replace_commit(7.2, commits(DELAYER, 2, 8.2))
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
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near, and no lease was lost before "
                        "their commit, the first of them record 1 of transaction 1"))

    def test_6_a_delayer_that_sends_on_again_though_no_delayer_was_hit(self):
        self.send_on_again(Fault("kill", BEGIN + 7.15, BEGIN + 7.5, ["index-1"]))
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near"))

    def test_6_a_delayer_that_sends_on_again_what_was_sent_on_long_before_a_fault(self):
        self.history.settings.session_secs = 1
        self.send_on_again(Fault("kill", BEGIN + 7.85, BEGIN + 7.88, ["delayer-1"]))
        self.expect((6, "delayer/0: 1 delay messages were sent on again, which was done 1.8 s before a fault"))

    def test_6_a_delayer_that_sends_on_again_what_could_not_be_committed_before_the_lease_was_lost(self):
        # Also what came to the log only then.
        for secs in (7.5, 6):
            self.history = right()
            self.send_on_again()
            self.lose(DELAYER, secs)
            self.expect()

    def test_6_a_lease_of_a_delayer_that_was_lost_of_another_seat_or_at_another_time_excuses_nothing(self):
        for seat, secs in ((Seat("delayer", 1), 7.5), (INDEX, 7.5), (DELAYER, 2), (DELAYER, 8.1)):
            self.history = right()
            self.send_on_again()
            self.lose(seat, secs)
            self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near"))

    def test_6_a_delayer_that_sends_on_again_what_was_committed_before_the_lease_was_lost(self):
        self.send_on_again()
        self.lose(DELAYER, 7.5)
        self.replace_commit(8.2, commits(DELAYER, 1, 6.2), commits(DELAYER, 2, 8.2))
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though no fault was near, and no lease was lost before "
                        "their commit, the first of them record 1 of transaction 1"))

    def test_6_what_was_committed_is_so_although_a_later_delay_message_of_the_same_change_is_not(self):
        self.send_on_again()
        self.lose(DELAYER, 7.5)
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 6))]
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (1, 1, 7.9), (2, 2, 8), (1, 1, 11.1))]
        self.history.runs[1] = run(1, 5, 11.2)
        self.replace_commit(8.7, commits(INDEX, 6, 11.7))
        self.replace_commit(8.2, commits(DELAYER, 1, 6.2), commits(DELAYER, 2, 8.2), commits(DELAYER, 3, 11.2))
        finish(self.history)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though no fault was near"))

    def test_6_a_delayer_that_sends_on_again_what_was_committed_before_a_fault(self):
        self.send_on_again(Fault("kill", BEGIN + 7.5, BEGIN + 7.8, ["delayer-1"]))
        self.replace_commit(8.2, commits(DELAYER, 1, 6.2), commits(DELAYER, 2, 8.2))
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though they were committed 1.3 s before a fault, the "
                        "first of them record 1 of transaction 1"))

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
