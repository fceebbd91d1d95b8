"""Whether the delayer sends messages on again that it need not."""

import bisect
import dataclasses
import math
from collections import defaultdict

from deliveries import CLOCK_SECS
from faults import Faults
from faults import of_brokers
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
    # When it had been last; of several delay messages of its key, each, at the earliest.
    before: float
    since: float
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
        has_committed = op and op.committed and int(op.committed * 1000) <= millis
        if has_committed and messages.instant[key][0] >= due and key not in announced_late:
            # Nor is this one its delayer's: its transaction took longer than the delay.
            announced_late.add(key)
            continue
        earlier = [sent / 1000 for sent in messages.instant[key] if due <= sent < millis] or [millis / 1000]
        # Since each was sent last, each of the others may have been once, and its writer's message besides.
        others = messages.again[key] + (key in announced_late)
        yield Repeat(key, earlier[-1], earlier[-1 - others:][0], millis / 1000, reached)


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
    """By what the delayers of a seat may come to repeat something: faults, and leases that were lost."""

    def __init__(self, history, fences, seat):
        faults = [fault for fault in history.faults if fault.kind not in CLEAN and fault.hits("delayer")]
        self.session_secs = history.settings.session_secs
        self.faults, self.brokers = Faults(faults), of_brokers(history)
        # What hold up messages that are on their way.
        self.standstills = Faults(fault for fault in faults if "broker" in fault.kind or fault.kind == "stop")
        self.losses = history.lost_by_load(seat)
        # When each leader but the first took over.
        self.changes = [reign.commits[0].at for reign in fences.reigns.get(seat, ())[1:] if reign.commits]

    def lacks(self, repeat):
        """What is wrong with it; None if nothing is."""
        # So long an older leader may have been sending.
        if repeat.again > self.standstills.hold_up(repeat.committed, self.session_secs) + self.session_secs:
            return f"{repeat.again - repeat.committed:.1f} s after their commit"
        # Whoever sent it before may have been hit long ago: without a broker nobody begins anew.
        since = min(repeat.since, repeat.again - 3 * self.session_secs)
        if not self.has_changed(since, repeat.again):
            # What no broker has acknowledged a leader sends again itself.
            fault, lost, lacks = self.brokers.first(since, repeat.again), None, "by the same leader, though no broker was away"
        else:
            fault, lost = self.faults.first(since, repeat.again), self.lost_before_the_commit(repeat)
            lacks = "though no fault was near, and no lease was lost before their commit"
        # What was lost before a fault was not lost by it.
        if lost is not None and (fault is None or lost < fault):
            return None
        return lacks if fault is None else self.lacks_before(fault, repeat)

    def has_changed(self, since, again):
        """Whether a leader took over; what the one before had on its way then may have come to the log a little later."""
        at = bisect.bisect_left(self.changes, since - self.session_secs)
        return at < len(self.changes) and self.changes[at] <= again

    def lost_before_the_commit(self, repeat):
        """When the lease was lost of whoever had sent it and should not have committed it by then; None if none was."""
        at = bisect.bisect_left(self.losses, repeat.since - self.session_secs)
        latest = min(repeat.again, repeat.committed, repeat.before + 2 * self.session_secs)
        if at < len(self.losses) and self.losses[at] <= latest:
            return self.losses[at]
        return None

    def lacks_before(self, fault, repeat):
        """What is wrong with a repeat by that fault, which began then."""
        if repeat.committed < fault:
            return f"though they were committed {fault - repeat.committed:.1f} s before a fault"
        # In that time a delayer commits what it has sent, or leads no more.
        if repeat.before < fault - self.session_secs:
            return f"which was done {fault - repeat.before:.1f} s before a fault"
        return None


def forwarded_seldom_twice(history, fences, forwards):
    """6: nothing that was committed is sent on again, but what an older leader had on its way; of the rest a new delayer repeats
    what was not committed when a fault began or a lease was lost, and the same one what a broker has not acknowledged.
    """
    for seat, repeats in forwards.repeats.items():
        excuses = Excuses(history, fences, seat)
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
