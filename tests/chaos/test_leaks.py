"""What processes hold, and what is left of them."""

import contextlib
import os
import socket
import subprocess
import sys
import unittest

from held import held
from history import Fault
from small_history import BEGIN
from small_history import SmallHistory


def note(**other):
    held = {"own_files": 14, "clients": 3, "broker_threads": 14, "broker_sockets": 9, "threads": 25, "rss_kib": 20_000}
    return {"event": "measured", "at": BEGIN, **held, **other}


class Leaks(SmallHistory):
    def measured(self, **other):
        """By three processes at the start, one of them in the middle of something; and by one in the end."""
        self.history.notes = [
            note(when="start", member="index-1"),
            note(when="start", member="index-2", own_files=18, threads=20),
            note(when="start", member="index-3", broker_threads=11),
            *(note(when="start", member=f"delayer-{number}", own_files=30, clients=9) for number in (1, 2, 3)),
            note(**{"when": "end", "member": "index-2", **other}),
        ]

    def test_10_what_is_held_in_the_end_is_what_was_held_at_the_start_within_two_files(self):
        self.measured(own_files=16, broker_threads=18, broker_sockets=18, threads=37)
        self.expect()

    def test_10_files_that_are_left_open(self):
        self.measured(own_files=17)
        self.expect((10, "index-2 has 17 files of its own in the end, at the start 14"))

    def test_10_clients_of_kafka_that_are_left(self):
        self.measured(clients=4, broker_threads=19, threads=38)
        self.expect((10, "index-2 has 4 clients of Kafka in the end, at the start 3"),
                    (10, "index-2 has 19 threads for brokers in the end, at the start 14"),
                    (10, "index-2 has 38 threads in the end, at the start 25"))

    def test_10_connections_that_no_thread_has(self):
        self.measured(broker_sockets=15)
        self.expect((10, "index-2 has 15 connections to brokers in the end, and 14 threads for them"))

    def test_10_what_comes_and_goes_with_brokers_and_handlers_is_no_file_of_its_own(self):
        with contextlib.ExitStack() as stack:
            broker = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = broker.getsockname()[1]
            before = held(os.getpid(), {port})
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            handler = [sys.executable, "-c", "import sys; sys.stdin.read()", "handler.py"]
            pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
            stack.enter_context(subprocess.Popen(handler, **pipes))
            # As the one of descriptor 3.
            report, its_end = os.pipe()
            stack.callback(os.close, report)
            os.close(its_end)
            found = held(os.getpid(), {port})
            self.assertEqual((found["broker_sockets"], found["handlers"]), (1, 1))
            self.assertEqual(found["own_files"], before["own_files"])
            with open("/dev/null"):
                self.assertEqual(held(os.getpid(), {port})["own_files"], before["own_files"] + 1)

    def test_10_a_process_that_is_left_behind(self):
        self.history.notes = [{"event": "strays", "found": ["77 sleep 600"], "at": BEGIN}]
        self.expect((10, "left behind: 77 sleep 600"))

    def test_10_a_process_that_ended_by_itself(self):
        self.history.notes = [{"event": "ended by itself", "member": "index-1", "status": 101, "at": BEGIN}]
        self.expect((10, "index-1 ended by itself with status 101"))

    def terminated(self, status):
        self.history.notes = [
            {"event": "terminated", "member": "index-1", "begun": BEGIN + 3, "at": BEGIN + 15.2, "status": status},
        ]

    def test_10_a_process_that_is_asked_to_end_amid_the_faults_and_fails(self):
        # The one by which it was asked to.
        self.history.faults = [Fault("terminate", BEGIN + 3, BEGIN + 15.2, ["index-1"])]
        self.terminated(0)
        self.expect()
        for status in (101, 75, -15, -11):
            self.terminated(status)
            self.expect((10, f"index-1 ended with status {status} when asked to"))
        self.terminated(None)
        self.expect((10, "index-1 had not ended 12 s after it was asked to"))

    def test_10_only_what_holds_it_up_lets_it_die_of_the_signal(self):
        held_up = Fault("broker stopped", BEGIN + 2, BEGIN + 10, ["kafka-1"])
        for fault, status, *violations in (
            (held_up, -15), (held_up, 75), (Fault("stop", BEGIN + 2, BEGIN + 10, ["cache-1"]), -15, (10, "status -15")),
            (held_up, 101, (10, "status 101")), (held_up, -11, (10, "status -11")), (held_up, None, (10, "had not ended")),
        ):
            self.history.faults = [fault]
            self.terminated(status)
            self.expect(*violations)

    def samples(self, minutes, rss_kib, files=lambda minute: 50, threads=lambda minute: 14, pid=7):
        """One each minute."""
        self.history.notes += [
            note(when="sample", member="index-1", pid=pid, at=BEGIN + 60 * minute, rss_kib=round(rss_kib(minute)),
                 own_files=files(minute), broker_threads=threads(minute))
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

    def test_10_threads_for_brokers_that_become_more_while_a_process_lives(self):
        self.samples(120, lambda minute: 30_000, threads=lambda minute: 14 + minute // 15)
        self.expect((10, "threads for brokers of index-1 over 1.8 h: 15, then 21"))

    def test_10_a_soak_in_which_nothing_was_measured_or_not_for_long_enough(self):
        self.history.settings.spared = ["index-1"]
        self.expect((10, "index-1 was watched for 0.0 h, not for 0.5 h"))
        self.samples(40, lambda minute: 30_000)
        self.expect((10, "index-1 was watched for 0.0 h, not for 0.5 h"))
        self.samples(60, lambda minute: 30_000, pid=8)
        self.expect()
        self.history.ended = BEGIN + 2 * 3600
        self.expect((10, "index-1 was watched for 0.8 h, not for 0.9 h"))


if __name__ == "__main__":
    unittest.main()
