"""Faults of the same victim, one after the other."""

import tempfile
import threading
import time
import types
import unittest
from pathlib import Path
from unittest import mock

import nemesis
from members import NAMES
from nemesis import Nemesis


class Line:
    """In the place of a proxy: notes how it was harmed, and whether the store of the indexes was away."""

    def __init__(self, store):
        self.lock, self.store, self.notes = threading.Lock(), store, []

    def cut(self):
        self.notes.append(("cut", self.store.exists()))

    def heal(self):
        self.notes.append(("healed", self.store.exists()))


class Overlapping(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        history = Path(folder.name)
        self.store = history / "outage-index"
        members = [
            types.SimpleNamespace(name=name, kind=name.rpartition("-")[0], proxy=Line(self.store)) for name in NAMES
        ]
        self.lines = {member.name: member.proxy for member in members}
        self.nemesis = Nemesis(types.SimpleNamespace(history=history), types.SimpleNamespace(all=members), None)

    def at_once(self, *faults):
        threads = [threading.Thread(target=fault) for fault in faults]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def test_a_second_cut_lasts_on_when_the_first_one_is_over(self):
        self.at_once(*[lambda: self.nemesis.cut(0, 0.05)] * 2)
        self.assertEqual([how for how, _ in self.lines["index-1"].notes], ["cut", "healed"] * 2)

    def test_a_store_is_away_until_the_last_outage_is_over(self):
        def sleep(secs):
            time.sleep(secs)
            found.append(self.store.exists())

        found = []
        with mock.patch.object(nemesis, "time", types.SimpleNamespace(sleep=sleep)):
            self.at_once(lambda: self.nemesis.store_away(0, 0.05), lambda: self.nemesis.store_away(0, 0.1))
        self.assertEqual(found, [True, True])
        self.assertFalse(self.store.exists())

    def test_a_store_away_and_cut_has_no_store_while_all_of_its_kind_are_cut(self):
        with mock.patch.object(nemesis, "LAST_RUNS_SECS", 0.01):
            self.assertEqual(self.nemesis.store_away_and_cut(0, 0.01), ["index-1", "index-2", "index-3"])
        for name, line in self.lines.items():
            self.assertEqual(line.notes, [("cut", True), ("healed", True)] if name.startswith("index") else [])
        self.assertFalse(self.store.exists())


if __name__ == "__main__":
    unittest.main()
