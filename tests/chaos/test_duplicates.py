"""Records that a handler is given twice, and when that may be."""

import unittest

from history import BY_LOAD
from history import CLOSED
from history import Fault
from history import Seat
from small_history import BEGIN
from small_history import INDEX
from small_history import SmallHistory
from small_history import commits
from small_history import finish
from small_history import right
from small_history import run
from world import PROJECT


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

    def test_6_who_was_asked_to_end_may_leave_a_batch_only_where_it_could_not_commit_in_its_time(self):
        self.follow(0, Fault("terminate", BEGIN + 2, BEGIN + 2.75, ["index-1"]), Fault("broker stopped", BEGIN + 1, BEGIN + 9))
        self.history.leaders = {(INDEX, 1): "index-1", (INDEX, 50): "index-2"}
        for status, *violations in ((-15,), (0, (6, "of a new leader repeats 1 records from 0"))):
            note = {"event": "terminated", "member": "index-1", "begun": BEGIN + 2, "at": BEGIN + 2.75, "status": status}
            self.history.notes = [note]
            self.expect(*violations)

    def test_6_a_fault_that_hit_processes_of_another_kind_alone_excuses_nothing(self):
        self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, ["cache-1"]))
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_nor_does_one_that_hit_a_process_which_did_not_lead(self):
        self.history.leaders = {(INDEX, 1): "index-1", (INDEX, 50): "index-2"}
        for member, *violations in (("index-1",), ("index-3", (6, "of a new leader repeats 1 records from 0"))):
            self.follow(0, Fault("kill", BEGIN + 2, BEGIN + 2.5, [member]))
            self.expect(*violations)

    def test_6_nor_does_one_that_was_over_when_the_records_were_done(self):
        self.history.settings.session_secs = 1
        for fault, begun, healed, *violations in (
            ("kill", 1, 1.4, (6, "of a new leader repeats 1 records from 0")), ("kill", 1, 1.6),
            # With one server away the others let somebody lead.
            ("zookeeper follower killed", 1, 9, (6, "of a new leader repeats 1 records from 0")),
            ("zookeeper follower killed", 2, 9),
        ):
            self.follow(0, Fault(fault, BEGIN + begun, BEGIN + healed, []))
            self.expect(*violations)

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

    def test_6_nor_does_one_that_was_lost_when_all_that_was_done_should_have_been_committed_for_long(self):
        for secs, *violations in ((4.4,), (4.6, (6, "of a new leader repeats 1 records from 0"))):
            self.history = right()
            self.history.settings.session_secs = 1
            self.follow(0)
            self.lose(INDEX, secs)
            self.expect(*violations)
        # Which it cannot be while no broker tells whether the topic is the same.
        self.history.faults = [Fault("broker killed", BEGIN + 3, BEGIN + 4, ["kafka-1"])]
        self.expect()

    def test_6_nor_does_one_that_another_process_has_lost(self):
        self.follow(0)
        self.lose(INDEX, 2.65)
        self.history.leaders = {(INDEX, 1): "index-2"}
        self.expect((6, "of a new leader repeats 1 records from 0"))

    def test_6_who_stands_still_tells_late_that_its_lease_was_lost(self):
        self.follow(0)
        self.lose(INDEX, 8.1)
        self.history.leaders = {(INDEX, 1): "index-1", (INDEX, 50): "index-2"}
        self.expect()

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

    def test_6_a_lease_is_lost_for_what_a_machine_with_too_much_to_do_explains(self):
        source = (PROJECT / "src" / "election" / "lease.rs").read_text()
        for why in BY_LOAD:
            self.assertIn(f'"{why}', source)
            self.history = right()
            self.follow(0)
            self.lose(INDEX, 2.65, f"{why}1.6s" if why.endswith(" ") else why)
            self.expect()

    def test_6_a_lease_that_was_lost_for_another_reason_is_a_mistake_and_excuses_nothing(self):
        for why in ("deposed: somebody else has written the offset since", "ZooKeeper refuses the write: /x: NoAuth", CLOSED):
            self.history = right()
            self.follow(0)
            self.lose(INDEX, 2.65, why)
            self.expect((6, f"index/0: index-1 has lost its lease: {why}"), (6, "of a new leader repeats 1 records from 0"))

    def test_6_who_is_asked_to_end_may_close_the_election_while_it_leads(self):
        self.lose(INDEX, 9, CLOSED)
        self.lose(INDEX, 20.1, CLOSED)
        self.history.notes = [{"event": "terminated", "member": "index-1", "begun": BEGIN + 8.9, "at": BEGIN + 9.1, "status": 0}]
        self.expect()
        self.history.notes[0]["member"] = "index-2"
        self.expect((6, f"index/0: index-1 has lost its lease: {CLOSED}"))

    def test_6_but_whoever_is_asked_to_end_loses_its_lease_for_no_other_reason(self):
        self.lose(INDEX, 20.1, "ZooKeeper refuses the write: /x: NoAuth")
        self.expect((6, "index/0: index-1 has lost its lease: ZooKeeper refuses the write: /x: NoAuth"))

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
        self.history.leaders = {(INDEX, 1): "index-1", (INDEX, 50): "index-2"}
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


if __name__ == "__main__":
    unittest.main()
