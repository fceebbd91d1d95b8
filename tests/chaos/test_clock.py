"""Clocks that are wrong, and what goes by them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import types
import unittest
from pathlib import Path

from clock import clocks
from clock import right_times
from journal import Journal
from journal import entries
from members import PYTHON
from nemesis import CLOCKS
from nemesis import JUMP_SECS
from nemesis import Nemesis
from nemesis import with_clocks
from schedule import Planned

HOUR = 3600
# The time, the same of a process that it starts, and what that one has of the clock in its environment.
TIMES = """
import json, subprocess, sys, time
for line in sys.stdin:
    child = json.loads(subprocess.run(sys.argv[1:], stdout=subprocess.PIPE).stdout)
    print(json.dumps([time.time(), *child]), flush=True)
"""
TIME = 'import json, os, time; print(json.dumps([time.time(), [name for name in ("CLOCK", "LD_PRELOAD") if name in os.environ]]))'


class Clocks(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.clocks = clocks(["index-1", "writers"], self.folder, Journal(self.folder / "world.jsonl"))

    def set_so_far(self):
        return [(note["of"], note["ahead_secs"]) for note in entries(self.folder / "world.jsonl")]

    def test_a_process_goes_by_its_clock_at_once_and_those_that_it_starts_by_the_right_one(self):
        clock = self.clocks["index-1"]
        with contextlib.ExitStack() as stack:
            command, env = [sys.executable, "-c", TIMES, *PYTHON, "-c", TIME], {**os.environ, **clock.environment()}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(subprocess.Popen(command, env=env, **pipes))
            for hours in (0, 2, -3, 0):
                clock.set(hours * HOUR)
                process.stdin.write("now\n")
                process.stdin.flush()
                its_time, time_of_child, inherited = json.loads(process.stdout.readline())
                self.assertAlmostEqual(its_time - time.time(), hours * HOUR, delta=60)
                self.assertAlmostEqual(time_of_child, time.time(), delta=60)
                self.assertEqual(inherited, [])
            process.stdin.close()

    def test_a_clock_that_jumps_or_strobes_is_right_again_in_the_end(self):
        nemesis = Nemesis(types.SimpleNamespace(clocks=self.clocks), None, None)
        writers, index = CLOCKS.index("writers"), CLOCKS.index("index-1")
        self.assertEqual(nemesis.clock_jumps(writers, 0.01), ["writers"])
        self.assertEqual(self.set_so_far(), [("writers", (writers / 32768 - 1) * JUMP_SECS), ("writers", 0)])
        self.assertEqual(nemesis.clock_strobes(index, 0.5), ["index-1"])
        strobes = self.set_so_far()[2:]
        self.assertEqual(strobes[:2], [("index-1", 2), ("index-1", -2)])
        self.assertEqual(strobes[-1], ("index-1", 0))

    def test_only_those_have_a_clock_whose_clock_is_to_be_wrong(self):
        planned = [Planned(1, "kill", 1, 1), Planned(2, "clock jumps", 9, 1), Planned(3, "clock strobes", 22, 1)]
        self.assertEqual(with_clocks(planned), {"writers", "index-3"})
        self.assertEqual(with_clocks(planned[:1]), set())

    def test_the_lines_of_a_log_are_put_to_their_right_times(self):
        settings = [(0.0, 0), (100.0, 2 * HOUR), (110.0, 0), (120.0, 2), (120.1, -2), (120.2, 0)]
        written = [99.0, 101.0, 101.0, 109.9, 111.0, 120.05, 120.15, 121.0, 130.0]
        shown = [99.0, 7301.0, 7301.0, 7309.9, 111.0, 122.05, 118.15, 121.0, 130.0]
        for right, expected in zip(right_times(shown, settings), written, strict=True):
            # As near as the clock went forth and back.
            self.assertAlmostEqual(right, expected, delta=0.6)


if __name__ == "__main__":
    unittest.main()
