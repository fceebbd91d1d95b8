"""What the harness notes of a machine that has too much to do."""

import tempfile
import types
import unittest
from pathlib import Path
from unittest import mock

import members
from journal import Journal
from journal import entries
from members import Members


class Stalls(unittest.TestCase):
    def noted(self, *times):
        """With a watch that begins to wait and comes back at these times, again and again."""
        proxies = types.SimpleNamespace(open=lambda _targets: types.SimpleNamespace(addresses="127.0.0.1:1"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "world.jsonl"
            world = types.SimpleNamespace(journal=Journal(path), zookeepers=[], history=None, postgres=None, seed=1, batch_size=5)
            watched = Members(world, Path("/none"), proxies, spares=False)
            watched.ended = mock.Mock(wait=mock.Mock(side_effect=[*[False] * (len(times) // 2), True]))
            with mock.patch.object(members, "time", mock.Mock(monotonic=mock.Mock(side_effect=times))):
                watched.watch_stalls()
            return [(note["event"], note["secs"]) for note in entries(path)]

    def test_a_watch_that_comes_late_is_noted_by_how_long_it_took(self):
        self.assertEqual(self.noted(7.0, 7.2, 7.3, 10.44, 10.5, 10.7, 10.8), [("stalled", 3.1)])

    def test_one_that_comes_about_in_time_is_not(self):
        self.assertEqual(self.noted(7.0, 7.2, 7.2, 7.6, 7.6), [])


if __name__ == "__main__":
    unittest.main()
