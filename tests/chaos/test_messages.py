"""What of the messages has to be in the log, and of whom."""

import unittest

from history import Fault
from messages import in_one_partition
from small_history import BEGIN
from small_history import DELAYER
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import log
from small_history import run


class InTheLog(SmallHistory):
    def test_3_an_action_that_began_before_its_delay_message_was_in_the_log(self):
        self.history.ops[2].begun = BEGIN + 1.9
        self.expect((3, "transaction 2 began with 0 of its 1 delay messages"))

    def test_3_an_instant_message_that_was_acknowledged_and_is_not_there(self):
        self.history.instant = [log((1, 1, 6.1), (2, 2, 7.1))]
        self.history.runs = [run(0, 1, 8)]
        self.replace_commit(2.6)
        self.replace_commit(8.6, commits(INDEX, 2, 8.6))
        finish(self.history)
        self.expect((3, "0 of 1 instant messages of transaction 1"))

    def test_3_a_delay_message_that_was_not_sent_on(self):
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 6.9))]
        self.history.ops[2].committed = BEGIN + 2.2
        finish(self.history)
        self.expect((3, "1 delay messages were not sent on, the first at 1"), (4, "before all up to it was sent on"))

    def test_3_a_transaction_that_committed_when_its_delay_messages_were_sent_on_already(self):
        self.history.ops[2].committed = BEGIN + 7.5
        self.expect((3, "transaction 2 committed 0.5 s after its last delay messages were due"))

    def test_3_what_no_broker_took_could_not_be_sent_again(self):
        self.history.ops[2].committed = BEGIN + 7.5
        self.history.faults = [Fault("broker stopped", BEGIN + 4, BEGIN + 6)]
        self.expect()

    def test_3_nor_may_a_short_action_begin_when_no_broker_took_it_in_time(self):
        self.history.ops[2].begun, self.history.ops[2].committed = BEGIN + 7.0, BEGIN + 7.5
        self.history.faults = [Fault("broker stopped", BEGIN + 4, BEGIN + 6)]
        self.expect((3, "transaction 2 committed 0.5 s after its last delay messages were due"))

    def test_3_messages_of_a_record_in_two_partitions(self):
        self.history.settings.partitions = 2
        self.history.instant.append(log((2, 2, 2.5)))
        found = [violation.text for violation in in_one_partition(self.history)]
        self.assertEqual(found, ["messages of 1 records lie in several partitions, the first of them 2"])

    def test_3_a_repeat_by_the_delayer_is_no_instant_message_of_the_writer(self):
        self.history.instant = [log((1, 1, 6.1), (1, 1, 6.2), (2, 2, 7.1))]
        self.history.runs = [run(0, 2, 8)]
        self.history.faults = [Fault("broker killed", BEGIN + 5.9, BEGIN + 6.15, ["kafka-1"])]
        self.replace_commit(2.6)
        finish(self.history)
        self.expect((3, "0 of 1 instant messages of transaction 1"))

    def delay_twice(self, *instant, ended):
        """With two delay messages of the first record, of the same millisecond."""
        self.history.delayed = [log((1, 1, 1), (1, 1, 1), (2, 2, 2))]
        self.history.instant = [log(*instant)]
        self.history.ops[1].ended = BEGIN + ended
        self.history.runs = [run(0, len(instant) - 1, 8)]
        self.replace_commit(2.6)
        self.replace_commit(7.2, commits(DELAYER, 3, 7.2))
        self.replace_commit(8.6, commits(INDEX, len(instant), 8.6))
        finish(self.history)

    def test_3_nor_is_what_the_delayer_makes_of_a_second_delay_message_of_the_same_time(self):
        self.delay_twice((1, 1, 6.1), (1, 1, 6.15), (2, 2, 7.1), ended=7)
        self.expect((3, "0 of 1 instant messages of transaction 1"))
        self.delay_twice((1, 1, 1.5), (1, 1, 6.1), (1, 1, 6.15), (2, 2, 7.1), ended=7)
        self.expect()

    def renew(self, secs, committed):
        """Delay messages of the second transaction, which are due after 7 s."""
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (2, 2, secs))]
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (2, 2, secs + 5.1))]
        self.history.runs = [run(0, 0, 2), run(1, 3, 13.1)]
        self.history.ops[2].committed = BEGIN + committed
        self.replace_commit(8.6, commits(DELAYER, 3, secs + 5.2), commits(INDEX, 4, 13.6))
        finish(self.history)

    def test_3_delay_messages_that_are_sent_again_before_the_commit_cover_it(self):
        self.renew(6.9, committed=7.8)
        self.expect()

    def test_3_delay_messages_that_are_sent_again_after_the_commit_do_not_cover_it(self):
        self.renew(7.9, committed=7.8)
        self.expect((3, "transaction 2 committed 0.8 s after its last delay messages were due"))

    def test_3_but_their_ksync_stream_may_have_stood_still(self):
        self.renew(7.5, committed=7.4)
        self.expect()


class Written(SmallHistory):
    def wrote(self, status, rows=1, chunks=1):
        """By a ksync-stream that begins with the first transaction."""
        note = {"event": "wrote", "at": BEGIN + 3, "first": 1, "plan": ["commits"] * chunks, "rows": rows, "status": status}
        self.history.notes = [note]

    def test_3_a_chunk_that_was_lost_by_a_ksync_stream_that_ended_well(self):
        self.history.ops[2].committed = BEGIN + 2.2
        self.wrote(0, chunks=2)
        self.expect()
        self.wrote(0, chunks=3)
        self.expect((3, "the ksync-stream of transaction 1 ended well with 2 of 3 rows committed"))

    def test_3_a_chunk_that_did_not_commit_though_its_ksync_stream_ended_well(self):
        self.wrote(0, chunks=2)
        self.expect((3, "the ksync-stream of transaction 1 ended well with 1 of 2 rows committed"))
        self.wrote(1, chunks=2)
        self.expect()

    def test_3_rows_that_were_lost_by_a_ksync_stream_that_ended_well(self):
        self.wrote(0, rows=11)
        self.expect((3, "the ksync-stream of transaction 1 ended well with 1 of 11 rows committed"))

    def test_3_a_ksync_stream_fails_or_is_killed_and_ends_in_no_other_way(self):
        for status in (1, 75, -9):
            self.wrote(status)
            self.expect()
        for status in (101, 78, -11, -6):
            self.wrote(status)
            self.expect((3, f"the ksync-stream of transaction 1 ended with status {status}"))


if __name__ == "__main__":
    unittest.main()
