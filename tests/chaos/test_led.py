"""When all partitions are led."""

import types
import unittest
from pathlib import Path
from unittest import mock

from run import all_led
from world import World


class Led(unittest.TestCase):
    def setUp(self):
        self.world = World(Path("/none"), seed=1, batch_size=5)
        self.world.state = types.SimpleNamespace(servers={"zookeeper": [types.SimpleNamespace(ports={"client": 1})]})

    def found(self, *texts):
        """The offsets of a seat, and whether all are led, where the nodes of each seat have these texts."""
        with mock.patch("world.zookeeper_texts", return_value=texts):
            return self.world.offsets("chaos", "index"), all_led(self.world)

    def test_they_are_when_each_has_an_offset(self):
        self.assertEqual(self.found("0", "7", "0", "0"), ([0, 7, 0, 0], True))

    def test_they_are_not_while_one_has_none(self):
        self.assertEqual(self.found("7", "", "0", "0"), ([7, None, 0, 0], False))

    def test_they_are_not_known_to_be_while_no_server_answers(self):
        with mock.patch("world.zookeeper_texts", side_effect=ConnectionRefusedError):
            self.assertIsNone(self.world.offsets("chaos", "index"))
            self.assertFalse(all_led(self.world))


if __name__ == "__main__":
    unittest.main()
