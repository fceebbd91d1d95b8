"""Whether the delayer sends messages on again that it need not."""

import bisect
import dataclasses
import itertools
import math
from collections import defaultdict

from deliveries import CLOCK_SECS
from health import delayers
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
    # How many of its log's had been sent on by then.
    reached: int
    # When the offset had passed it.
    committed: float = math.inf


class Forwards:
    """What of the instant messages was sent on again, by seat."""

    def __init__(self, history, fences, messages):
        self.repeats = {seat: list(repeats(history, messages, seat.partition)) for seat in delayers(history)}
        for seat, found in self.repeats.items():
            note_commits(found, history.delayed[seat.partition], fences.commits(seat))

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
        yield Repeat(key, messages.sent_on(key, due) / 1000, millis / 1000, reached)


def note_commits(found, log, commits):
    """Of several delay messages of a key it may be the last one that had been sent on."""
    offsets, keys = defaultdict(list), {repeat.key for repeat in found}
    for offset, key in enumerate(log.keys()):
        if key in keys:
            offsets[key].append(offset)
    passed = [commit.offset for commit in commits]
    for repeat in found:
        before = bisect.bisect_left(offsets[repeat.key], repeat.reached)
        at = bisect.bisect(passed, offsets[repeat.key][before - 1]) if before else len(commits)
        if at < len(commits):
            repeat.committed = commits[at].at + CLOCK_SECS


class Excuses:
    """The faults and the lost leases by which the delayer of a seat may come to repeat something."""

    def __init__(self, history, seat):
        faults = [fault for fault in history.faults if fault.kind not in CLEAN and fault.hits("delayer")]
        faults.sort(key=lambda fault: fault.begun)
        self.session_secs = history.settings.session_secs
        self.losses = sorted(at for lost, at, _ in history.lost_leases if lost == seat)
        self.begins = [fault.begun for fault in faults]
        # The latest end of all up to each.
        self.ends = list(itertools.accumulate((fault.healed for fault in faults), max))

    def lacks(self, repeat):
        """What is wrong with it; None if nothing is."""
        # What was on its way when the lease was lost may have come to the log a little later.
        at = bisect.bisect_left(self.losses, repeat.first - self.session_secs)
        if at < len(self.losses) and self.losses[at] <= min(repeat.again, repeat.committed):
            return None
        since = min(repeat.first, repeat.again - 3 * self.session_secs)
        at = bisect.bisect_left(self.ends, since)
        if at == len(self.ends) or self.begins[at] > repeat.again:
            return "though no fault was near, and no lease was lost before their commit"
        if repeat.committed < self.begins[at]:
            return f"though they were committed {self.begins[at] - repeat.committed:.1f} s before a fault"
        # In that time a delayer commits what it has sent, or leads no more.
        if repeat.first < self.begins[at] - self.session_secs:
            return f"which was done {self.begins[at] - repeat.first:.1f} s before a fault"
        return None


def forwarded_seldom_twice(history, forwards):
    """6: a delayer repeats only what was not committed when a fault began or a lease was lost."""
    for seat, repeats in forwards.repeats.items():
        excuses = Excuses(history, seat)
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
