"""Whether the delayer sends messages on again that it need not."""

import bisect
import dataclasses
import itertools

from history import Seat
from history import Violation

# These repeat nothing: before a clean end a delayer waits for what is in flight.
CLEAN = ("terminate", "rolling restart", "writers killed", "store away", "handlers killed", "handler stopped", "clock jumps",
         "clock strobes")
# Repeats that lie closer together are one matter.
PAUSE_SECS = 5


@dataclasses.dataclass
class Repeat:
    """A delay message that was sent on when it had been already."""

    key: tuple
    first: float
    again: float


class Forwards:
    """What of the instant messages was sent on again, by seat."""

    def __init__(self, history, messages):
        self.repeats = {
            Seat("delayer", partition): list(repeats(history, messages, partition))
            for partition in range(history.settings.partitions)
        }

    def duplicates(self):
        return {seat: len(repeats) for seat, repeats in self.repeats.items()}


def repeats(history, messages, partition):
    """The delayer keeps the order: each message that is not the next to be sent on is its writer's, or one that comes again."""
    delayed, instant = history.delayed[partition], history.instant[partition]
    delay, reached, announced_late = round(history.settings.delay_secs * 1000), 0, set()
    for key, millis in zip(instant.keys(), instant.millis):
        if reached < len(delayed) and key == delayed.key(reached) and millis >= delayed.millis[reached] + delay:
            reached += 1
            continue
        due = messages.delayed.get(key, millis) + delay
        if millis < due:
            continue  # Its writer's: what the delayer sends on early is for point 8.
        op = history.ops.get(key[0])
        if op and op.committed and messages.instant[key][0] >= due and key not in announced_late:
            # Nor is this one its delayer's: its transaction took longer than the delay.
            announced_late.add(key)
            continue
        yield Repeat(key, messages.sent_on(key, due) / 1000, millis / 1000)


class Excuses:
    """The faults by which a delayer may come to repeat something."""

    def __init__(self, history):
        faults = [fault for fault in history.faults if fault.kind not in CLEAN and fault.hits("delayer")]
        faults.sort(key=lambda fault: fault.begun)
        self.session_secs = history.settings.session_secs
        self.begins = [fault.begun for fault in faults]
        # The latest end of all up to each.
        self.ends = list(itertools.accumulate((fault.healed for fault in faults), max))

    def lacks(self, repeat):
        """What is wrong with it; None if nothing is."""
        since = min(repeat.first, repeat.again - 3 * self.session_secs)
        at = bisect.bisect_left(self.ends, since)
        if at == len(self.ends) or self.begins[at] > repeat.again:
            return "though no fault was near"
        # In that time a delayer commits what it has sent, or leads no more.
        if repeat.first < self.begins[at] - self.session_secs:
            return f"which was done {self.begins[at] - repeat.first:.1f} s before a fault"
        return None


def forwarded_seldom_twice(history, forwards):
    """6: after a fault a delayer repeats what it had not committed yet, and nothing if no fault was near."""
    excuses = Excuses(history)
    for seat, repeats in forwards.repeats.items():
        found = ((repeat, lacks) for repeat in repeats if (lacks := excuses.lacks(repeat)))
        for together in runs(found):
            repeat, lacks = together[0]
            op, id = repeat.key
            text = f"{seat}: {len(together)} delay messages were sent on again, {lacks}, the first of them"
            yield Violation(6, f"{text} record {id} of transaction {op}", repeat.again)


def runs(found):
    """Those that lie close together."""
    together = []
    for one in found:
        if together and one[0].again > together[-1][0].again + PAUSE_SECS:
            yield together
            together = []
        together.append(one)
    if together:
        yield together
