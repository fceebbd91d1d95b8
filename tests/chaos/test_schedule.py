"""The schedule of the faults."""

import unittest

from schedule import KINDS
from schedule import ON_DEMAND
from schedule import schedule


class Schedule(unittest.TestCase):
    def test_the_same_seed_gives_the_same_schedule_and_another_seed_another_one(self):
        self.assertEqual(schedule(7, 25, 3), schedule(7, 25, 3))
        self.assertNotEqual(schedule(7, 25, 3), schedule(8, 25, 3))

    def test_a_long_one_has_all_kinds_in_the_order_of_time_and_about_the_pauses_that_were_asked_for(self):
        planned = schedule(1, 1000, 3)
        self.assertEqual({fault.kind for fault in planned}, set(KINDS))
        times = [fault.at_secs for fault in planned]
        self.assertEqual(times, sorted(times))
        self.assertTrue(2500 < times[-1] < 3600, times[-1])

    def test_of_some_kinds_there_are_no_others(self):
        planned = schedule(1, 50, 3, ("cut", "terminate"))
        self.assertEqual({fault.kind for fault in planned}, {"cut", "terminate"})

    def test_what_is_on_demand_comes_only_then(self):
        self.assertEqual({fault.kind for fault in schedule(1, 5, 3, tuple(ON_DEMAND))}, set(ON_DEMAND))
        self.assertEqual(set(KINDS) & set(ON_DEMAND), set())


if __name__ == "__main__":
    unittest.main()
