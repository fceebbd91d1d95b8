"""Delay messages that are sent on twice, and when that may be."""

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
from small_history import queues
from small_history import right
from small_history import run
from txn_log import Txn

# Of the delayers: number, session and term.
SECOND = 1, 81, 60


class SentOnAgain(SmallHistory):
    def change_of_delayers(self, secs):
        """Up to the moment when the second one takes over."""
        return queues(DELAYER, secs - 0.2, *SECOND), Txn(61, 80, BEGIN + secs - 0.1, (), closes_session=True)

    def send_on_again(self, *faults, committed=None, again=7.9, is_new=True, leads=None):
        """Both delay messages, by a second delayer, when the first one is committed or neither was."""
        leads = leads or again - 0.1
        self.replace_commit(8.6, commits(INDEX, 5, again + 0.8))
        self.replace_commit(6.2, *([commits(DELAYER, 1, committed)] if committed else []))
        change = [*self.change_of_delayers(leads), commits(DELAYER, 1 if committed else 0, leads, *SECOND)]
        self.replace_commit(7.2, *(change if is_new else ()), commits(DELAYER, 2, again + 0.3, *(SECOND if is_new else ())))
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (1, 1, again), (2, 2, again + 0.1))]
        self.history.runs[1] = run(1, 4, again + 0.2)
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

    def test_6_nor_though_only_a_delayer_was_hit_that_did_not_lead(self):
        self.history.leaders = {(DELAYER, 2): "delayer-1", (DELAYER, 60): "delayer-2"}
        for member, *violations in (("delayer-1",), ("delayer-3", (6, "2 delay messages were sent on again, though no fault"))):
            self.send_on_again(Fault("kill", BEGIN + 7.15, BEGIN + 7.5, [member]))
            self.expect(*violations)

    def test_6_nor_though_a_server_of_zookeeper_is_away_since_long_ago(self):
        for begun, *violations in ((6.5,), (-6, (6, "2 delay messages were sent on again, though no fault was near"))):
            self.send_on_again(Fault("zookeeper follower killed", BEGIN + begun, BEGIN + 9, ["zookeeper-1"]))
            self.expect(*violations)

    def test_6_a_fault_before_changes_nothing_for_what_was_sent_on_long_before_its_delayer_was_hit(self):
        before = Fault("zookeeper stopped", BEGIN + 5, BEGIN + 6.2, ["zookeeper-1"])
        kill = Fault("kill", BEGIN + 16, BEGIN + 16.5, ["delayer-1"])
        self.send_on_again(before, kill, again=18)
        self.expect((6, "2 delay messages were sent on again, which was done 9.9 s before its delayer was hit"))
        # Nothing could be committed.
        self.history.faults.append(Fault("broker killed", BEGIN + 7, BEGIN + 12, ["kafka-1"]))
        self.expect()

    def test_6_a_delayer_that_sends_on_again_what_was_sent_on_long_before_a_fault(self):
        self.history.settings.session_secs = 1
        self.send_on_again(Fault("kill", BEGIN + 8.3, BEGIN + 8.4, ["delayer-1"]), again=9)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, which was done 2.2 s before its delayer was hit"))

    def test_6_a_delayer_that_sends_on_again_what_it_has_sent_on_itself(self):
        for kind in ("kill", "cut"):
            self.history = right()
            self.send_on_again(Fault(kind, BEGIN + 7.15, BEGIN + 7.5, ["delayer-1"]), is_new=False)
            self.expect((6, "delayer/0: 2 delay messages were sent on again, by the same leader, though no broker was away"))

    def test_6_but_not_what_a_broker_has_not_acknowledged(self):
        self.send_on_again(Fault("broker killed", BEGIN + 6.9, BEGIN + 7.5, ["kafka-1"]), is_new=False)
        self.expect()

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

    def test_6_nor_does_a_delayers_that_was_lost_for_another_reason(self):
        self.send_on_again()
        self.lose(DELAYER, 7.5, "deposed: somebody else has written the offset since")
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near"),
                    (6, "delayer/0: delayer-1 has lost its lease: deposed: somebody else has written the offset since"))

    def test_6_nor_what_the_same_delayer_repeats(self):
        self.send_on_again(is_new=False)
        self.lose(DELAYER, 7.5)
        self.expect((6, "delayer/0: 2 delay messages were sent on again, by the same leader, though no broker was away"))

    def test_6_nor_what_should_have_been_committed_for_long(self):
        self.send_on_again(again=16)
        self.lose(DELAYER, 15.2)
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near, and no lease was lost"))

    def test_6_nor_where_it_was_lost_by_a_fault_what_should_have_been_committed_for_long_before_that(self):
        self.send_on_again(Fault("stop", BEGIN + 15.5, BEGIN + 17.5, ["delayer-1"]), again=18)
        self.lose(DELAYER, 17.5)
        self.expect((6, "delayer/0: 2 delay messages were sent on again, which was done 9.4 s before its delayer was hit"))

    def test_6_what_came_to_the_log_only_when_another_one_led_that_one_may_repeat_later(self):
        self.history.settings.session_secs = 1
        self.send_on_again(leads=7.08, again=10.3)
        self.lose(DELAYER, 6.5)
        self.expect()

    def test_6_a_lease_that_was_lost_excuses_what_comes_again_and_not_what_comes_once_more(self):
        self.history.settings.session_secs = 1
        self.send_on_again(leads=8.5, again=8.9)
        self.lose(DELAYER, 7.2)
        self.expect()
        sent_on = [(1, 1, 6.1), (2, 2, 7.1), (1, 1, 8.9), (2, 2, 9)]
        self.history.instant = [log((1, 1, 1.5), *sent_on, (1, 1, 10.9), (2, 2, 11))]
        self.history.runs[1] = run(1, 6, 11.1)
        self.replace_commit(8.9 + 0.3, commits(DELAYER, 2, 11.2, *SECOND))
        self.replace_commit(8.9 + 0.8, commits(INDEX, 7, 11.7))
        finish(self.history)
        self.expect((6, "delayer/0: 2 delay messages were sent on again, though no fault was near, and no lease was lost"))

    def test_6_its_writers_message_that_comes_late_is_not_what_was_sent_on_before(self):
        self.history.settings.session_secs = 1
        self.send_on_again(leads=8.8, again=9)
        self.lose(DELAYER, 7.3)
        self.history.ops[1].committed, self.history.ops[1].ended = BEGIN + 5.9, BEGIN + 9
        self.history.instant = [log((1, 1, 7.1), (2, 2, 7.15), (1, 1, 8.9), (1, 1, 9), (2, 2, 9.1))]
        self.history.runs = [run(0, 4, 9.2)]
        self.replace_commit(2.6)
        finish(self.history)
        self.expect()

    def test_6_nor_is_what_comes_again_before_its_writers_message(self):
        self.history.settings.session_secs = 1
        self.send_on_again(leads=8.8, again=9)
        self.lose(DELAYER, 7.3)
        self.history.ops[1].committed, self.history.ops[1].ended = BEGIN + 5.9, BEGIN + 15.6
        self.history.instant = [log((1, 1, 7.1), (2, 2, 7.15), (1, 1, 9), (2, 2, 9.1), (1, 1, 15.5))]
        self.history.runs = [run(0, 4, 15.7)]
        self.replace_commit(2.6)
        self.replace_commit(9.8, commits(INDEX, 5, 16.3))
        finish(self.history)
        self.expect()
        # One alone can be that.
        self.history.instant = [log((1, 1, 7.1), (2, 2, 7.15), (1, 1, 9), (2, 2, 9.1), (1, 1, 15.4), (1, 1, 15.5))]
        self.history.runs = [run(0, 5, 15.7)]
        self.replace_commit(16.3, commits(INDEX, 6, 16.3))
        finish(self.history)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, 6.2 s after their commit"))

    def test_6_a_fault_after_the_lease_was_lost_changes_nothing(self):
        self.history.settings.session_secs = 1
        self.send_on_again(Fault("kill", BEGIN + 8.3, BEGIN + 8.4, ["delayer-2"]), again=9)
        self.lose(DELAYER, 7)
        self.expect()

    def test_6_a_delayer_that_sends_on_again_what_was_committed_before_the_lease_was_lost(self):
        self.send_on_again(committed=6.2)
        self.lose(DELAYER, 7.5)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though no fault was near, and no lease was lost before "
                        "their commit, the first of them record 1 of transaction 1"))

    def test_6_what_was_committed_is_so_although_a_later_delay_message_of_the_same_change_is_not(self):
        self.send_on_again(committed=6.2)
        self.lose(DELAYER, 7.5)
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 6))]
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (1, 1, 7.9), (2, 2, 8), (1, 1, 11.1))]
        self.history.runs[1] = run(1, 5, 11.2)
        self.replace_commit(8.7, commits(INDEX, 6, 11.7), commits(DELAYER, 3, 11.2, *SECOND))
        finish(self.history)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though no fault was near"))

    def test_6_a_delayer_that_sends_on_again_what_was_committed_before_a_fault(self):
        self.send_on_again(Fault("kill", BEGIN + 7.5, BEGIN + 7.8, ["delayer-1"]), committed=6.2)
        self.expect((6, "delayer/0: 1 delay messages were sent on again, though they were committed 1.3 s before a fault, the "
                        "first of them record 1 of transaction 1"))

    def send_on_again_what_is_committed(self, again, *faults):
        """Both delay messages, by a second delayer that leads just before."""
        self.history.instant = [log((1, 1, 1.5), (1, 1, 6.1), (2, 2, 7.1), (1, 1, again), (2, 2, again + 0.1))]
        self.history.runs.append(run(3, 4, again + 0.2))
        self.history.accepted.append((INDEX, 1, 3, 4))
        self.replace_commit(again, *self.change_of_delayers(again - 0.1), commits(DELAYER, 2, again - 0.1, *SECOND),
                            commits(INDEX, 5, again + 0.8))
        self.history.faults = list(faults)
        self.history.ended = BEGIN + again + 10
        finish(self.history)

    def test_6_a_delayer_that_sends_on_again_what_was_committed_after_the_lease_was_lost(self):
        for secs in (6.15, 3.2):
            self.history = right()
            self.send_on_again_what_is_committed(45)
            self.lose(DELAYER, secs)
            self.expect((6, "delayer/0: 2 delay messages were sent on again, 38.8 s after their commit, the first of them record "
                            "1 of transaction 1"))

    def test_6_a_delayer_that_sends_on_again_what_was_committed_after_a_fault(self):
        self.send_on_again_what_is_committed(45, Fault("kill", BEGIN + 6.12, BEGIN + 6.15, ["delayer-1"]))
        self.expect((6, "delayer/0: 2 delay messages were sent on again, 38.8 s after their commit"))

    def test_6_what_an_old_leader_had_sent_may_come_after_the_commit_as_long_as_something_holds_it_up(self):
        stop = Fault("stop", BEGIN + 6, BEGIN + 14, ["delayer-1"])
        broker = Fault("broker stopped", BEGIN + 6, BEGIN + 14, ["kafka-1"])
        for again, fault, *violations in (
            (16, stop), (16, broker), (10, Fault("kill", BEGIN + 6, BEGIN + 6.1, ["delayer-1"])),
            (18.5, stop, (6, "2 delay messages were sent on again, 12.3 s after their commit")),
            (16, Fault("stop", BEGIN + 6, BEGIN + 14, ["index-1"]), (6, "2 delay messages were sent on again, 9.8 s after")),
        ):
            self.history = right()
            self.send_on_again_what_is_committed(again, fault)
            self.expect(*violations)

    def test_6_of_several_delay_messages_of_a_change_each_may_come_again_after_all_of_them(self):
        # The lease is lost at 8.7, and much has to be sent before them.
        self.history.settings.session_secs = 1
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 3.5))]
        again = [(1, 1, 10.1), (2, 2, 10.2), (1, 1, 10.3)]
        self.history.instant = [log((1, 1, 1.5), (1, 1, 8.5), (2, 2, 8.51), (1, 1, 8.52), *again)]
        self.history.runs[1] = run(1, 6, 10.4)
        self.history.txns = [*self.history.txns[:5], *self.change_of_delayers(9.2), commits(DELAYER, 0, 9.2, *SECOND),
                             commits(DELAYER, 3, 10.6, *SECOND), commits(INDEX, 7, 10.9)]
        finish(self.history)
        self.lose(DELAYER, 8.7)
        self.expect()

    def test_6_what_came_again_before_the_commit_of_its_transaction_was_not_its_writers(self):
        # That one's came at 12.5, long after the delay.
        self.history.settings.session_secs = 1
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 3.4), (1, 1, 5.8), (1, 1, 8.2))]
        sent_on = [(1, 1, 6.1), (2, 2, 7.1), (1, 1, 7.9), (2, 2, 8), (1, 1, 8.4), (1, 1, 10.8)]
        self.history.instant = [log(*sent_on, (1, 1, 12.5), (1, 1, 13.2))]
        self.history.ops[1] = Op(1, 1, BEGIN + 1.1, BEGIN + 12.4, status=0, ended=BEGIN + 12.6)
        self.history.runs = [run(0, 7, 13.5)]
        offsets = ((0, 7.8), (2, 8.1), (3, 8.5), (4, 10.9), (5, 13.3))
        self.history.txns = [*self.history.txns[:4], *self.change_of_delayers(7.8),
                             *(commits(DELAYER, offset, secs, *SECOND) for offset, secs in offsets), commits(INDEX, 8, 14.1)]
        self.history.faults = [Fault("kill", BEGIN + 7, BEGIN + 7.5, ["delayer-1"])]
        finish(self.history)
        self.expect()

    def test_6_an_instant_message_that_comes_later_than_the_delay_is_not_the_delayers(self):
        # The transaction is so long that its delay message is sent again.
        self.history.delayed = [log((1, 1, 1), (2, 2, 2), (1, 1, 3.6))]
        self.history.instant = [log((1, 1, 6.1), (1, 1, 6.3), (2, 2, 7.1), (1, 1, 8.7))]
        self.history.ops[1] = Op(1, 1, BEGIN + 1.1, BEGIN + 6.2, status=0, ended=BEGIN + 6.4)
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
        self.expect((6, "delayer/0: 1 delay messages were sent on again, by the same leader"))
        self.history.ops[1].committed, self.history.ops[1].status = None, 1
        self.expect((6, "delayer/0: 2 delay messages were sent on again, by the same leader"))


if __name__ == "__main__":
    unittest.main()
