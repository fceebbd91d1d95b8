"""Whether it goes on while nothing is broken, and leaves nothing behind."""

import bisect
import statistics

from deliveries import CLOCK_SECS
from deliveries import seats
from history import CLOSED
from history import Seat
from history import Violation

RECOVERY_SECS = 10
# By how much more than at the start, and how that is said. librdkafka keeps the thread of a broker that was away for as long
# as anything refers to it: one for each of a delayer's four clients. Threads that block are as many as questions are open.
MORE = {
    "own_files": (2, "files of its own"),
    "clients": (0, "clients of Kafka"),
    "broker_threads": (4, "threads for brokers"),
    "threads": (12, "threads"),
}
RSS_LIMIT_KIB = (64 + 64) * 1024
# These end leases of the processes that they hit; all that hit ZooKeeper may end any.
ENDS_LEASES = ("stop", "cut", "swallow replies", "swallow all")


def goes_on(history, fences):
    """9: on a healthy cluster nothing that can be done waits for longer than a session timeout and 10 s."""
    limit = history.settings.session_secs + RECOVERY_SECS
    for seat in [*seats(history), *delayers(history)]:
        for begin, end in gaps(history, fences, seat):
            if end - begin > limit:
                yield Violation(9, f"{seat}: nothing was committed for {end - begin:.1f} s, though all was well", begin)


def delayers(history):
    return [Seat("delayer", partition) for partition in range(history.settings.partitions)]


def gaps(history, fences, seat, healthy_only=True):
    """From when to when each seat had work and no commit, cut down to what lies within a healthy time."""
    log = (history.delayed if seat.name == "delayer" else history.instant)[seat.partition]
    delay = history.settings.delay_secs if seat.name == "delayer" else 0
    spans = history.healthy() if healthy_only else [(history.begun, history.ended)]
    begins = [begin for begin, _ in spans]
    reached, since = 0, history.begun
    steps = [(commit.at, commit.offset) for commit in fences.commits(seat) if commit.offset]
    for at, offset in [*steps, (history.ended, len(log))]:
        if reached < len(log):
            waits = max(since, log.millis[reached] / 1000 + delay)
            near = spans[max(0, bisect.bisect(begins, waits) - 1):bisect.bisect(begins, at)]
            yield from ((max(waits, begin), min(at, end)) for begin, end in near if end > waits)
        if offset > reached:
            reached, since = offset, at


def longest_gap(history, fences, healthy_only=True):
    """(seconds, seat, when it began)."""
    found = [
        (end - begin, str(seat), begin)
        for seat in [*seats(history), *delayers(history)]
        for begin, end in gaps(history, fences, seat, healthy_only)
    ]
    return max(found, default=(0.0, "", history.begun))


def losses(history):
    """How many leases were lost: in all, with no fault near that ends one, and while nothing was broken."""
    spans = history.healthy()
    needless = [loss for loss in history.lost_leases if not has_cause(history, loss)]
    healthy = [loss for loss in needless if any(begin <= loss.at <= end for begin, end in spans)]
    return len(history.lost_leases), len(needless), len(healthy)


def has_cause(history, loss):
    return any(
        fault.begun <= loss.at <= fault.healed + history.settings.session_secs
        and (fault.kind.startswith("zookeeper") or fault.kind in ENDS_LEASES and loss.member in fault.victims)
        for fault in history.faults
    )


def lost_by_mistake(history):
    """6: no lease is lost but for what a machine with too much to do explains, or to a process that is ending.

    Whom a newer leader has followed is told that its candidate is gone: ZooKeeper looks for that first.
    """
    for loss in history.lost_leases:
        if not loss.is_by_load and not (loss.why == CLOSED and is_ending(history, loss)):
            yield Violation(6, f"{loss.seat}: {loss.member} has lost its lease: {loss.why}", loss.at)


def is_ending(history, loss):
    """Whether the process was asked to: in the end all are."""
    return loss.at >= history.ended or any(
        note["member"] == loss.member and note["begun"] - CLOCK_SECS <= loss.at <= note["at"]
        for note in history.noted("terminated")
    )


def no_leaks(history):
    """10: what the processes hold in the end is what they held at the start, and nothing is left of them."""
    measured = history.noted("measured")
    for note in measured:
        if note["when"] == "end":
            yield from more_than_at_the_start(note, measured)
        if note["rss_kib"] > RSS_LIMIT_KIB:
            yield Violation(10, f"{note['member']} takes {note['rss_kib'] // 1024} MiB", note["at"])
    for note in history.noted("strays"):
        for stray in note["found"]:
            yield Violation(10, f"left behind: {stray}", note["at"])
    for note in history.noted("ended by itself"):
        yield Violation(10, f"{note['member']} ended by itself with status {note['status']}", note["at"])
    for note in history.noted("ended"):
        if note["status"] != 0:
            yield Violation(10, f"{note['member']} ended with status {note['status']} when asked to", note["at"])


def more_than_at_the_start(note, measured):
    """Of what those of its kind held then, which were at work, that in the middle."""
    kind, member = kind_of(note), note["member"]
    first = [other for other in measured if other["when"] == "start" and kind_of(other) == kind]
    for what, (more, name) in MORE.items():
        before = statistics.median_low(other[what] for other in first)
        if note[what] > before + more:
            yield Violation(10, f"{member} has {note[what]} {name} in the end, at the start {before}", note["at"])
    # Each thread of librdkafka has one at most.
    if note["broker_sockets"] > note["broker_threads"]:
        text = f"{member} has {note['broker_sockets']} connections to brokers in the end, and {note['broker_threads']} threads"
        yield Violation(10, f"{text} for them", note["at"])


def kind_of(note):
    return note["member"].rpartition("-")[0]
