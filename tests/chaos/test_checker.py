"""Each point of the checker, on a small history that is right, and on the same with one thing wrong in it."""

import json
import unittest

from checker import check
from history import Fault
from history import History
from history import Log
from history import Op
from history import Run
from history import Seat
from history import Settings
from messages import in_one_partition
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
    history.ops = {1: Op(1, 1, BEGIN + 1.1, BEGIN + 1.3, status=0), 2: Op(2, 1, BEGIN + 2.1)}
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


class Points(unittest.TestCase):
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

    def test_6_a_new_leader_that_repeats_more_than_a_batch(self):
        self.history.settings.batch_size = 0
        self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, ["index-1"]))
        self.expect((6, "repeats 1 records from 0"))

    def test_6_a_leader_that_repeats_what_it_has_done(self):
        self.history.runs[1] = run(0, 2, 8)
        finish(self.history)
        self.expect((6, "of the same leader repeats 1 records from 0"))

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
        self.expect((8, "although it had not committed"))

    def test_8_delay_messages_that_are_late(self):
        self.history.instant = [log((1, 1, 1.5), (1, 1, 12.1), (2, 2, 12.2))]
        self.history.runs[1] = run(1, 2, 13)
        self.history.txns = [*self.history.txns[:5], commits(DELAYER, 2, 12.3), commits(INDEX, 3, 13.6)]
        finish(self.history)
        self.expect((8, "was later than 6.1 s"))

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

    def test_10_files_that_are_left_open(self):
        measured = {"event": "measured", "member": "index-1", "threads": 20, "rss_kib": 20_000, "at": BEGIN}
        self.history.notes = [{**measured, "when": "start", "files": 50}, {**measured, "when": "end", "files": 70}]
        self.expect((10, "index-1 has 70 files in the end, at the start 50"))

    def test_10_a_process_that_is_left_behind(self):
        self.history.notes = [{"event": "strays", "found": ["77 sleep 600"], "at": BEGIN}]
        self.expect((10, "left behind: 77 sleep 600"))

    def test_10_a_process_that_ended_by_itself(self):
        self.history.notes = [{"event": "ended by itself", "member": "index-1", "status": 101, "at": BEGIN}]
        self.expect((10, "index-1 ended by itself with status 101"))

    def samples(self, minutes, rss_kib, files=lambda minute: 50, pid=7):
        """One each minute."""
        measured = {"event": "measured", "when": "sample", "member": "index-1", "pid": pid, "threads": 20}
        self.history.notes += [
            {**measured, "at": BEGIN + 60 * minute, "rss_kib": round(rss_kib(minute)), "files": files(minute)}
            for minute in range(minutes)
        ]

    def test_10_memory_that_grows_while_a_process_lives(self):
        self.samples(120, lambda minute: 30_000 + 1100 * minute / 60)
        self.expect((10, "memory of index-1 over 1.8 h: +1.07 MiB an hour"))

    def test_10_memory_that_comes_and_goes_or_grows_at_first(self):
        # By 500 KiB an hour, after 20 MiB in the first ten minutes, and with a peak in the end.
        peak = lambda minute: 20_000 if minute > 115 else 0
        self.samples(120, lambda minute: 10_000 + 2000 * min(minute, 10) + 500 * minute / 60 + peak(minute))
        self.expect()

    def test_10_the_memory_of_processes_that_follow_each_other_or_live_shortly(self):
        self.samples(39, lambda minute: 10_000 + 1000 * minute)
        self.samples(60, lambda minute: 50_000, pid=8)
        self.expect()

    def test_10_files_that_become_more_while_a_process_lives(self):
        self.samples(120, lambda minute: 30_000, files=lambda minute: 50 + minute // 30)
        self.expect((10, "files of index-1 over 1.8 h: 50, then 53"))


if __name__ == "__main__":
    unittest.main()
