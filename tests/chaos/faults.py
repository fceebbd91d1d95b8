"""When faults were near, and what they held up."""

import bisect
import itertools

from history import Fault


class Faults:
    """Some of a run's, each of which lasts to its end."""

    def __init__(self, faults, end=lambda fault: fault.healed):
        faults = sorted(faults, key=lambda fault: fault.begun)
        self.begins = [fault.begun for fault in faults]
        # The latest end of all up to each.
        self.ends = list(itertools.accumulate(map(end, faults), max))

    def first(self, since, until):
        """When the first one began that was not healed before this time; None if none did."""
        at = bisect.bisect_left(self.ends, since)
        return self.begins[at] if at < len(self.begins) and self.begins[at] <= until else None

    def hold_up(self, at, pause):
        """Until when what was to happen then: by one after the other, each of which began within the pause."""
        while (count := bisect.bisect(self.begins, at + pause)) and self.ends[count - 1] > at:
            at = self.ends[count - 1]
        return at


def of_brokers(history):
    return Faults(fault for fault in history.faults if "broker" in fault.kind)


def stalls(history):
    """When the whole machine stood still, as the harness has noticed by itself."""
    return Faults(Fault("stalled", note["at"] - note["secs"], note["at"]) for note in history.noted("stalled"))


def stood_still(history, since, until):
    return stalls(history).first(since, until) is not None
