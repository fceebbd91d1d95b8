"""Each point of the checker, on a small history that is right, and on the same with one thing wrong in it."""

import unittest

from checker import check
from history import Fault
from small_history import BEGIN
from small_history import DELAYER
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import folder
from small_history import log
from small_history import run
from txn_log import Operation
from txn_log import Txn


class Points(SmallHistory):
    def test_nothing_is_found_in_a_history_that_is_right(self):
        self.expect()

    def test_1_a_row_of_the_copy_that_is_not_that_of_the_primary(self):
        self.history.copies["index"][2] = 0
        self.expect((1, "index: 1 rows are not those of the primary: 2: 0 for 1"))

    def test_1_a_row_that_the_copy_lacks(self):
        del self.history.copies["index"][2]
        self.expect((1, "2: None for 1"))

    def test_2_a_change_that_every_run_read_too_early_for(self):
        self.history.runs[1].snapshot = "800:900:850"
        self.history.changes[1] = (2, 1, 2, 850)
        self.expect((2, "version 1 of 2 (transaction 2)"))

    def test_2_a_run_that_failed_has_seen_nothing(self):
        self.history.runs.append(run(1, 2, 7.5, snapshot="900:900:"))
        self.history.runs.sort(key=lambda one: one.begun)
        self.history.runs[1].outcome = "fails after"
        self.history.runs[2].snapshot = "200:200:"
        finish(self.history)
        self.expect((2, "version 1 of 2"))

    def test_4_a_consumer_that_did_not_halt(self):
        right = {"event": "halts", "at": BEGIN, "topic": "expired", "due": 1, "has_halted": True, "given": [0], "committed": 1}
        self.history.notes = [right]
        self.expect()
        self.history.notes = [{**right, "has_halted": False, "committed": 9}]
        self.expect((4, "expired: did not halt; the handler was given 1 records and 9 were committed, of 1 that could be"))
        self.history.notes = [{**right, "given": [0, 1]}]
        self.expect((4, "expired: halted; the handler was given 2 records and 1 were committed, of 1 that could be"))

    def test_4_a_commit_before_the_run_was_done(self):
        self.replace_commit(8.6, commits(INDEX, 3, 8.3))
        self.expect((4, "3 was committed when only 1 was done"))

    def test_4_a_commit_past_a_run_that_failed(self):
        self.history.runs[0].outcome = "fails before"
        self.expect((4, "1 was committed when only 0 was done"), (4, "began at 1 when only 0 was reached"))

    def test_4_a_record_that_was_left_out(self):
        self.history.runs[1] = run(2, 2, 8)
        finish(self.history)
        self.expect((4, "began at 2 when only 1 was reached"))

    def test_4_bytes_that_are_not_those_of_the_topic(self):
        self.history.runs[1].sum += 1
        self.expect((4, "other bytes than the topic has at offsets 1 to 2"))

    def test_4_an_end_that_was_not_reached(self):
        self.replace_commit(8.6, commits(INDEX, 2, 8.6))
        self.expect((4, "committed 2 of 3 records in the end"))

    def test_4_a_delayer_that_committed_before_it_sent(self):
        self.replace_commit(7.2, commits(DELAYER, 2, 7.05))
        self.expect((4, "delayer/0: 2 was committed before all up to it was sent on"))

    def test_5_an_offset_written_without_a_fence(self):
        write = Operation("set", f"{folder(INDEX)}/offset", b"1")
        self.history.txns.insert(-1, Txn(900, 70, BEGIN + 7.5, (write,)))
        self.expect((5, "offset was written without a fence"))

    def test_5_an_offset_written_by_another_than_the_leader(self):
        self.replace_commit(8.6, commits(INDEX, 3, 8.6, session=71))
        self.expect((5, "by another than the leader"), (4, "committed 1 of 3"))

    def test_5_an_offset_written_while_nobody_led(self):
        self.history.txns.insert(-1, Txn(900, 70, BEGIN + 8.55, (), closes_session=True))
        self.expect((5, "while nobody led"), (4, "committed 1 of 3"))

    def test_5_an_offset_that_goes_back(self):
        self.replace_commit(8.6, commits(INDEX, 0, 5), commits(INDEX, 3, 8.6))
        self.expect((5, "the offset went back from 1 to 0"))

    def test_7_two_runs_at_once(self):
        self.history.runs[1].beside = "run-7"
        self.expect((7, "began beside run-7, and nobody was stopped"))

    def test_7_two_runs_at_once_while_a_process_was_stopped(self):
        self.history.runs[1].beside = "run-7"
        self.history.faults = [Fault("stop", BEGIN + 4, BEGIN + 9, ["index-1"])]
        self.expect()

    def test_7_a_run_of_a_leader_that_is_none_any_more(self):
        self.follow(1)
        self.history.runs[1].term = 1
        self.history.accepted[1] = (INDEX, 1, 1, 2)
        self.expect((7, "of term 1 began 5.2 s after its candidate was gone"))

    def stop(self, member):
        """The first leader is index-1, the second one index-2."""
        self.history.leaders = {(INDEX, 1): "index-1", (INDEX, 50): "index-2"}
        self.history.faults = [Fault("stop", BEGIN + 2, BEGIN + 4, [member])]

    def begin_late(self, secs):
        """By so much after its candidate is gone, that of the first leader."""
        self.follow(1)
        self.history.runs[1] = run(1, 2, 2.8 + secs)
        self.history.accepted[1] = (INDEX, 1, 1, 2)
        finish(self.history)

    def test_7_a_run_that_begins_a_second_after_its_candidate_is_gone(self):
        self.begin_late(0.4)
        self.expect()
        self.begin_late(1)
        self.expect((7, "of term 1 began 1.0 s after its candidate was gone"))
        self.history.notes = [{"event": "stalled", "at": BEGIN + 3, "secs": 1.5}]
        self.expect()

    def test_7_only_a_stop_of_its_own_process_lets_a_run_begin_late(self):
        self.begin_late(2)
        self.stop("index-1")
        self.expect()
        self.stop("index-2")
        self.expect((7, "of term 1 began 2.0 s after its candidate was gone"))

    def test_7_nor_does_a_stop_of_another_process_let_two_runs_be_alive_at_once(self):
        self.follow(1)
        self.history.runs[1].beside = self.history.runs[0].run
        self.stop("index-1")
        self.history.faults[0].healed = BEGIN + 9
        self.expect()
        self.history.faults[0].victims = ["index-3"]
        self.expect((7, "began beside run-2, and nobody was stopped"))

    def test_7_an_older_term_that_the_store_has_let_in(self):
        self.history.accepted.append((INDEX, 0, 1, 2))
        self.expect((7, "the store took offsets 1 to 2 of term 0 after term 1"))

    def test_8_a_message_that_is_sent_on_too_early(self):
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 6.9), (2, 2, 7.1))]
        self.history.runs[1] = run(1, 3, 8)
        self.replace_commit(8.6, commits(INDEX, 4, 8.6))
        finish(self.history)
        self.expect((8, "although it had not committed, 4900 ms after its delay message"))

    def test_8_an_instant_message_before_the_commit(self):
        self.history.ops[1].committed = BEGIN + 1.6
        self.expect((8, "although it had not committed"), (3, "0 of 1 instant messages of transaction 1"))

    def test_6_leases_that_are_lost_again_and_again_while_all_is_well(self):
        for number in range(2):
            self.lose(DELAYER, 9 + number)
        self.expect()
        self.lose(INDEX, 11, "ZooKeeper has answered no write for 1.60")
        self.expect((6, "3 leases were lost in 20 s in which all was well, the first of delayer/0: the connection to ZooKeeper"))
        # Those of a machine that stands still are not counted.
        self.history.notes = [{"event": "stalled", "at": BEGIN + 9.2, "secs": 1.7}]
        self.expect()
        self.history.notes = []
        self.history.faults = [Fault("zookeeper stopped", BEGIN + 8, BEGIN + 10, ["zookeeper-1"])]
        self.expect()

    def test_leases_that_are_lost_are_counted_and_those_without_a_cause(self):
        self.history.faults = [
            Fault("stop", BEGIN + 2, BEGIN + 3, ["index-1"]),
            Fault("broker killed", BEGIN + 10, BEGIN + 13, ["kafka-1"]),
            Fault("zookeeper leader killed", BEGIN + 16, BEGIN + 17, ["zookeeper-1"]),
        ]
        # The first after a fault of another process, the second while brokers are away, the third long after; two with a cause.
        for seat, secs in ((DELAYER, 4), (DELAYER, 12), (INDEX, 9), (INDEX, 5), (DELAYER, 17.5)):
            self.lose(seat, secs)
        self.assertEqual(check(self.history).lost_leases, (5, 3, 2))

    def test_9_a_record_that_waits_for_too_long(self):
        self.history.ended += 20
        self.history.runs[1] = run(1, 2, 22)
        finish(self.history)
        self.replace_commit(8.6, commits(INDEX, 3, 22.6))
        self.expect((9, "index/0: nothing was committed for 16.5 s, though all was well"))

    def test_9_a_record_that_waits_while_something_is_broken(self):
        self.test_9_a_record_that_waits_for_too_long()
        self.history.faults = [Fault("zookeeper quorum lost", BEGIN + 10, BEGIN + 20)]
        self.expect()

    def test_9_what_its_seat_can_feel_excuses_that_and_nothing_else(self):
        for fault, *victims in (("kill", "index-2"), ("handlers killed",), ("handler stopped", 77), ("store away", "index")):
            self.test_9_a_record_that_waits_for_too_long()
            self.history.faults = [Fault(fault, BEGIN + 10, BEGIN + 20, victims)]
            self.expect()
            self.setUp()
        for fault, *victims in (("kill", "cache-2"), ("stop", "delayer-1"), ("store away", "cache"), ("writers killed",),
                                ("clock jumps", "index-1")):
            self.test_9_a_record_that_waits_for_too_long()
            self.history.faults = [Fault(fault, BEGIN + 10, BEGIN + 20, victims)]
            self.expect((9, "index/0: nothing was committed for 16.5 s, though all was well"))
            self.setUp()

    def test_9_nothing_waits_for_ten_minutes_whatever_is_broken(self):
        for healed, *violations in ((500,), (700, (9, "index/0: nothing was committed for 703.5 s"))):
            self.setUp()
            self.history.ended = BEGIN + healed + 20
            self.history.runs[1] = run(1, 2, healed + 9)
            finish(self.history)
            self.replace_commit(8.6, commits(INDEX, 3, healed + 9.6))
            self.history.faults = [Fault("zookeeper quorum lost", BEGIN + 3, BEGIN + healed)]
            self.expect(*violations)


if __name__ == "__main__":
    unittest.main()
