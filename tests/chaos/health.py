"""Whether it goes on while nothing is broken, and leaves nothing behind."""

import bisect

from deliveries import seats
from history import Seat
from history import Violation

RECOVERY_SECS = 10
# A connection to each broker by each of a process' clients; what leaks at each fault is more than that.
MORE = {"files": 12, "threads": 12}
RSS_LIMIT_KIB = (64 + 64) * 1024


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


def no_leaks(history):
    """10: what the processes hold in the end is what they held at the start, and nothing is left of them."""
    first = {}
    for note in history.noted("measured"):
        kind = note["member"].rpartition("-")[0]
        for what, more in MORE.items():
            if note["when"] == "start":
                first[kind, what] = max(first.get((kind, what), 0), note[what])
            elif note["when"] == "end" and note[what] > first[kind, what] + more:
                text = f"{note['member']} has {note[what]} {what} in the end, at the start {first[kind, what]}"
                yield Violation(10, text, note["at"])
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
