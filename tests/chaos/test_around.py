"""What is shown near a violation."""

import tempfile
import unittest
from datetime import datetime
from datetime import timezone
from pathlib import Path

from around import MOST_NEAR
from around import around
from checker import check
from history import Fault
from history import Loss
from history import Seat
from history import Violation
from logs import leaders
from logs import lost_leases
from report import report
from small_history import BEGIN
from small_history import INDEX
from small_history import SmallHistory
from small_history import candidate
from small_history import right
from small_history import run
from txn_log import Operation
from txn_log import Txn


def line(secs, text):
    """Of a log."""
    time = datetime.fromtimestamp(BEGIN + secs, timezone.utc).isoformat(timespec="milliseconds").removesuffix("+00:00")
    return f"{time}Z ksync-consume {text}\n"


class Around(SmallHistory):
    def around(self, text, secs):
        return around(self.history, Violation(1, text, BEGIN + secs))

    def write_log(self, name, *lines):
        if not self.history.logs:
            folder = tempfile.TemporaryDirectory()
            self.addCleanup(folder.cleanup)
            self.history.logs = Path(folder.name)
        (self.history.logs / f"{name}.log").write_text("".join(lines))

    def test_of_a_seat_its_runs_its_offsets_and_faults_some_seconds_around(self):
        self.history.faults = [
            Fault("stop", BEGIN + 7, BEGIN + 7.5, ["index-1"]),
            Fault("cut", BEGIN + 14, BEGIN + 15, ["cache-1"]),
        ]
        self.history.runs.append(run(0, 0, 8.2, seat=Seat("cache", 0)))
        # That it lives.
        self.history.txns.append(Txn(900, 70, BEGIN + 8.8, (Operation("set", candidate(INDEX, 0)),)))
        self.assertEqual(self.around("index/0: something is wrong", 8), [
            "1007.000 fault: stop ['index-1']",
            "1007.500 healed: stop ['index-1']",
            "1008.000 run run-8 of index/0, term 1, offsets 1 to 2 begins",
            "1008.500 run run-8 of index/0, term 1, offsets 1 to 2: done",
            "1008.600 zookeeper: set /kafka_sync/consumer/chaos/0/index/offset = 3",
        ])

    def test_of_a_process_what_the_journal_and_its_log_have(self):
        self.history.notes = [
            {"event": "started", "at": BEGIN + 6, "member": "index-1", "pid": 7},
            {"event": "started", "at": BEGIN + 6, "member": "cache-1", "pid": 8},
        ]
        self.write_log("index-1", line(6.5, "info: chaos/0 as index: leading"), line(17, "info: late"))
        self.write_log("cache-1", line(6.5, "info: of another"))
        self.assertEqual(self.around("index-1 ended by itself with status 101", 10)[:2], [
            "1006.000 started: member=index-1 pid=7",
            "1006.500 index-1.log: ksync-consume info: chaos/0 as index: leading",
        ])

    def test_of_a_log_only_the_lines_of_the_partition_or_of_none_by_the_right_clock(self):
        # It was an hour ahead for a while.
        self.history.notes = [
            {"event": "clock", "at": BEGIN + 16, "of": "index-1", "ahead_secs": 3600},
            {"event": "clock", "at": BEGIN + 18, "of": "index-1", "ahead_secs": 0},
        ]
        self.write_log("index-1", line(3617, "warn: cannot reach ZooKeeper"), line(3617.1, "warn: chaos/1 as index: no"),
                       line(3617.2, "warn: chaos/0 as index: yes"), "a line of no time\n", line(19, "info: reached again"))
        self.assertEqual(self.around("index/0: something is wrong", 17.5), [
            "1017.000 index-1.log: ksync-consume warn: cannot reach ZooKeeper",
            "1017.200 index-1.log: ksync-consume warn: chaos/0 as index: yes",
            "1019.000 index-1.log: ksync-consume info: reached again",
        ])

    def test_leases_that_are_lost_are_told_by_the_logs_of_their_processes_by_the_right_clock(self):
        self.history.notes = [
            {"event": "clock", "at": BEGIN + 16, "of": "index-1", "ahead_secs": 3600},
            {"event": "clock", "at": BEGIN + 18, "of": "index-1", "ahead_secs": 0},
        ]
        lost = "no longer leading: the connection to ZooKeeper broke; queueing again"
        self.write_log("index-1", line(15, "info: chaos/0 as index: handed over"), line(3617, f"warn: chaos/2 as index: {lost}"),
                       line(19, "warn: chaos/1 as index: topic chaos was deleted and made again; looking at it anew"))
        self.write_log("delayer-3", line(5, f"warn: chaos-delay/1 as delayer: {lost}"))
        self.write_log("again", line(5, f"warn: chaos-again/0 as again: {lost}"))
        why = "the connection to ZooKeeper broke"
        self.assertEqual(lost_leases(self.history), [
            Loss(Seat("delayer", 1), BEGIN + 5, "delayer-3", why),
            Loss(Seat("index", 2), BEGIN + 17, "index-1", why),
        ])

    def test_which_process_leads_is_told_by_its_log(self):
        self.write_log("index-1", line(1, "info: chaos/2 as index: leading from offset 7, term 50"),
                       line(2, "info: chaos/2 as index: beginning anew at offset 9"))
        self.write_log("delayer-3", line(5, "info: chaos-delay/1 as delayer: leading from offset 0, term 21474836497"))
        self.write_log("again", line(5, "info: chaos-again/0 as again: leading from offset 0, term 60"))
        self.assertEqual(leaders(self.history), {
            (Seat("index", 2), 50): "index-1", (Seat("delayer", 1), 21474836497): "delayer-3",
        })

    def test_of_a_run_in_the_folder_of_an_earlier_one_its_own_logs_are_read(self):
        self.write_log("index-1", line(5, "warn: chaos/0 as index: no longer leading: the election was closed; queueing again"))
        self.assertEqual(len(lost_leases(self.history)), 1)
        folder, self.history = self.history.logs, right()
        self.history.logs = folder
        self.write_log("index-1", line(5, "info: chaos/0 as index: handed over"))
        self.assertEqual(lost_leases(self.history), [])

    def test_of_a_transaction_and_its_record_all_however_far_away(self):
        self.history.ops[1].ended = BEGIN + 1.6
        self.assertEqual(self.around("record 1 of transaction 1 was announced 2 times within the delay", 30), [
            "1001.000 delay message 0/0: record 1 of transaction 1",
            "1001.100 transaction 1 begins: its delay messages are acknowledged",
            "1001.300 transaction 1 has committed",
            "1001.500 instant message 0/0: record 1 of transaction 1",
            "1001.600 the ksync-stream of transaction 1 ends with status 0",
            "1006.100 instant message 0/1: record 1 of transaction 1",
        ])

    def test_of_a_row_of_a_copy_who_handled_its_record(self):
        lines = self.around("index: 1 rows are not those of the primary: 2: 0 for 1", 30)
        self.assertIn("1007.100 instant message 0/2: record 2 of transaction 2", lines)
        self.assertIn("1008.500 run run-8 of index/0, term 1, offsets 1 to 2: done", lines)

    def test_no_more_than_a_few_lines_the_nearest_ones(self):
        self.history.runs = [run(1, 2, 5 + number / 100) for number in range(200)]
        lines = self.around("index/0: something is wrong", 6)
        self.assertEqual(len(lines), MOST_NEAR)
        self.assertTrue(all(5.8 < float(line.split()[0]) - BEGIN < 6.2 for line in lines), lines)

    def test_each_violation_is_reported_with_what_was_around_it(self):
        self.history.runs[0].sum += 1
        self.history.runs[1].sum += 1
        lines = list(report(7, self.history, check(self.history)))
        places = [number for number, line in enumerate(lines) if line.startswith("  point 4: index/0: run ")]
        self.assertEqual(len(places), 2)
        self.assertIn("      1002.000 run run-2 of index/0, term 1, offsets 0 to 0 begins", lines[places[0]:places[1]])
        self.assertIn("      1008.000 run run-8 of index/0, term 1, offsets 1 to 2 begins", lines[places[1]:])


if __name__ == "__main__":
    unittest.main()
