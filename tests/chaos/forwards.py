"""Whether the delayer sends messages on again that it need not."""

import bisect
import dataclasses
import math
from collections import defaultdict

from deliveries import CLOCK_SECS
from faults import Faults
from faults import of_brokers
from fences import lost_by_load
from health import delayers
from history import Violation

# These repeat nothing: before a clean end a delayer waits for what is in flight.
CLEAN = ("terminate", "rolling restart", "writers killed", "store away", "handlers killed", "handler stopped", "clock jumps",
         "clock strobes")
# Repeats that lie closer together are one matter.
PAUSE_SECS = 5
# How the kinds of those faults begin that hit no process of ours.
SERVERS = ("broker", "zookeeper")


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
    # What came again if this one is its writer's: another one of its key, which counts as that.
    instead: "Repeat" = None


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
    delay, reached, announced_late = round(history.settings.delay_secs * 1000), 0, {}
    for key, millis in zip(instant.keys(), instant.millis):
        if reached < len(delayed) and key == delayed.key(reached) and millis >= delayed.millis[reached] + delay:
            reached += 1
            continue
        due = messages.delayed.get(key, millis) + delay
        if millis < due:
            continue  # Its writer's: what the delayer sends on early is for point 8.
        earlier = [sent / 1000 for sent in messages.instant[key] if due <= sent < millis] or [millis / 1000]
        # Since each was sent last, each of the others may have been once, and its writer's message besides.
        others = messages.again[key] + (key in announced_late)
        repeat = Repeat(key, earlier[-1], earlier[-1 - others:][0], millis / 1000, reached, instead=announced_late.get(key))
        op = history.ops.get(key[0])
        has_committed = op and op.committed and int(op.committed * 1000) <= millis
        if has_committed and messages.instant[key][0] >= due and key not in announced_late:
            # Nor is this one its delayer's: its transaction took longer than the delay.
            announced_late[key] = repeat
            continue
        yield repeat


def note_commits(found, log, commits):
    """Of several delay messages of a key it may be the last one that had been sent on."""
    offsets, keys = defaultdict(list), {repeat.key for repeat in found}
    for offset, key in enumerate(log.keys()):
        if key in keys:
            offsets[key].append(offset)
    passed = [commit.offset for commit in commits]
    for repeat in [*found, *(repeat.instead for repeat in found if repeat.instead)]:
        before = bisect.bisect_left(offsets[repeat.key], repeat.reached)
        at = bisect.bisect(passed, offsets[repeat.key][before - 1]) if before else len(commits)
        if at < len(commits):
            repeat.committed = commits[at].at + CLOCK_SECS


class Excuses:
    """By what the delayers of a seat may come to repeat something: faults, and leases that were lost."""

    def __init__(self, history, fences, seat):
        faults = [fault for fault in history.faults if fault.kind not in CLEAN and fault.hits("delayer")]
        self.session_secs = history.settings.session_secs
        self.brokers = of_brokers(history)
        # What hold up messages that are on their way.
        standstills = [fault for fault in faults if "broker" in fault.kind or fault.kind == "stop"]
        self.standstills = Faults(standstills)
        self.losses = sorted(at for at, _ in lost_by_load(history, fences, seat))
        self.reigns = [reign for reign in fences.reigns.get(seat, ()) if reign.commits]
        # When each of them took over; which process led then, or None where that is not known; when its candidate was gone.
        self.changes = [reign.commits[0].at for reign in self.reigns]
        self.leaders = [history.leaders.get((seat, reign.term)) for reign in self.reigns]
        self.gone = [fences.gone.get((seat, reign.term), math.inf) for reign in self.reigns]
        # By that process: those that it may feel, and by which an older leader may act later; those that hit it.
        self.faults, self.hits = {}, {}
        for member in set(self.leaders):
            felt = [fault for fault in faults if fault.hits("delayer", member)]
            self.faults[member] = Faults([*felt, *standstills], lambda fault: fault.takes_leases_until)
            self.hits[member] = Faults(fault for fault in felt if not fault.kind.startswith(SERVERS))

    def lacks(self, repeat):
        """What is wrong with it; None if nothing is."""
        # So long an older leader may have been sending.
        if repeat.again > self.standstills.hold_up(repeat.committed, self.session_secs) + self.session_secs:
            return f"{repeat.again - repeat.committed:.1f} s after their commit"
        # Whoever sent it before may have been hit long ago: without a broker nobody begins anew.
        since = min(repeat.since, repeat.again - 3 * self.session_secs)
        is_new = self.has_changed(since, repeat.again)
        if not is_new:
            # What no broker has acknowledged a leader sends again itself.
            fault, lost, lacks = self.brokers.first(since, repeat.again), None, "by the same leader, though no broker was away"
        else:
            faults = self.faults[self.leaders[self.older(repeat)]]
            fault, lost = faults.first(since, repeat.again), self.lost_before_the_commit(repeat)
            lacks = "though no fault was near, and no lease was lost before their commit"
        # What was lost before a fault was not lost by it.
        if lost is not None and (fault is None or lost < fault):
            return None
        return lacks if fault is None else self.lacks_before(fault, repeat, is_new)

    def has_changed(self, since, again):
        """Whether a leader took over; what the one before had on its way then may have come to the log a little later."""
        at = bisect.bisect_left(self.changes, since - self.session_secs, 1)
        return at < len(self.changes) and self.changes[at] <= again

    def older(self, repeat):
        """Which of the leaders had sent it on before: not the one by which it comes again."""
        before, again = (bisect.bisect(self.changes, at) - 1 for at in (repeat.before, repeat.again))
        return max(0, min(before, again - 1))

    def lost_before_the_commit(self, repeat):
        """When the lease was lost of whoever had sent it and should not have committed it by then; None if none was."""
        at = bisect.bisect_left(self.losses, repeat.since - self.session_secs)
        latest = min(repeat.again, repeat.committed, repeat.before + 2 * self.session_secs)
        if at < len(self.losses) and self.losses[at] <= latest:
            return self.losses[at]
        return None

    def lacks_before(self, fault, repeat, is_new):
        """What is wrong with a repeat by that fault, which began then, by a new leader or by the same one."""
        if repeat.committed < fault:
            return f"though they were committed {fault - repeat.committed:.1f} s before a fault"
        if not is_new:
            late = repeat.before < fault - self.session_secs
            return f"which was done {fault - repeat.before:.1f} s before a fault" if late else None
        end = self.end(self.older(repeat), repeat.before)
        # In that time a delayer commits what it has sent, or leads no more; it cannot while no broker tells whether the topic
        # is the same.
        if end > self.brokers.hold_up(repeat.before, self.session_secs) + 2 * self.session_secs:
            return f"which was done {end - repeat.before:.1f} s before its delayer was hit"
        return None

    def end(self, leader, since):
        """When it was hit, or has told that its lease was lost, or its candidate was gone: what came first."""
        hit = self.hits[self.leaders[leader]].first(since, math.inf)
        at = bisect.bisect_left(self.losses, self.changes[leader])
        return min([self.gone[leader], *self.losses[at:at + 1], *([] if hit is None else [hit])])


def forwarded_seldom_twice(history, fences, forwards):
    """6: nothing that was committed is sent on again, but what an older leader had on its way; of the rest a new delayer repeats
    what the one before had no time to commit until it was hit or had lost its lease, and the same one what a broker has not
    acknowledged.
    """
    for seat, repeats in forwards.repeats.items():
        excuses, late = Excuses(history, fences, seat), set()
        judged = ((repeat, excuses.lacks(repeat)) for repeat in repeats)
        found = ((repeat, lacks) for repeat, lacks in judged if lacks and not is_writers(repeat, excuses, late))
        for together in runs(found):
            repeat, lacks = together[0]
            op, id = repeat.key
            text = f"{seat}: {len(together)} delay messages were sent on again, {lacks}, the first of them"
            yield Violation(6, f"{text} record {id} of transaction {op}", repeat.again)


def is_writers(repeat, excuses, late):
    """Whether it may be its writer's message, and what counts as that is one that may come again. Of each key one is."""
    if not repeat.instead or repeat.key in late or excuses.lacks(repeat.instead):
        return False
    late.add(repeat.key)
    return True


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
