"""Whether it goes on while nothing is broken, and leaves nothing behind."""

import bisect
import signal
import statistics

from deliveries import seats
from faults import stood_still
from history import Seat
from history import UNFELT
from history import Violation

RECOVERY_SECS = 10
# So long nobody waits, even if one outage follows the other.
OUTAGES_SECS = 600
# By how much more than at the start, and how that is said. librdkafka keeps the thread of a broker that was away for as long
# as anything refers to it: one for each of a delayer's four clients. Threads that block are as many as questions are open.
MORE = {
    "own_files": (2, "files of its own"),
    "clients": (0, "clients of Kafka"),
    "broker_threads": (4, "threads for brokers"),
    "threads": (12, "threads"),
}
RSS_LIMIT_KIB = (64 + 64) * 1024
# By these a process is asked to end; so it may end, besides well, where something holds it up: when its time is over, or before
# it has begun.
ASKS = ("terminate", "rolling restart")
HELD_UP = (-signal.SIGTERM, 75)


def goes_on(history, fences):
    """9: on a healthy cluster nothing that can be done waits for longer than a session timeout and 10 s, and never for ten
    minutes.
    """
    limits = ((True, longest_wait(history), ", though all was well"), (False, OUTAGES_SECS, ""))
    for seat in all_seats(history):
        for healthy_only, limit, though in limits:
            for begin, end in gaps(history, fences, seat, healthy_only):
                if end - begin > limit:
                    yield Violation(9, f"{seat}: nothing was committed for {end - begin:.1f} s{though}", begin)


def longest_wait(history):
    return history.settings.session_secs + RECOVERY_SECS


def watched_secs(history):
    """How long it was looked at what waits for too long, by all seats together."""
    limit = longest_wait(history)
    return sum(max(0, end - begin - limit) for seat in all_seats(history) for begin, end in history.healthy(seat))


def all_seats(history):
    return [*seats(history), *delayers(history)]


def delayers(history):
    return [Seat("delayer", partition) for partition in range(history.settings.partitions)]


def gaps(history, fences, seat, healthy_only=True):
    """From when to when each seat had work and no commit, cut down to what lies within a healthy time."""
    log = (history.delayed if seat.name == "delayer" else history.instant)[seat.partition]
    delay = history.settings.delay_secs if seat.name == "delayer" else 0
    spans = history.healthy(seat) if healthy_only else [(history.begun, history.ended)]
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
        for seat in all_seats(history)
        for begin, end in gaps(history, fences, seat, healthy_only)
    ]
    return max(found, default=(0.0, "", history.begun))


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
    yield from ended_well(history)


def ended_well(history):
    """Whoever is asked to end while all goes wrong does so within its time, and a bit."""
    for note in history.noted("terminated"):
        member, status = note["member"], note["status"]
        if status is None:
            yield Violation(10, f"{member} had not ended {note['at'] - note['begun']:.0f} s after it was asked to", note["at"])
        elif status != 0 and not (status in HELD_UP and is_held_up(history, note)):
            yield Violation(10, f"{member} ended with status {status} when asked to", note["at"])


def is_held_up(history, note):
    since = note["begun"] - RECOVERY_SECS
    return stood_still(history, since, note["at"]) or any(
        fault.kind not in (*ASKS, *UNFELT) and fault.hits(kind_of(note), note["member"])
        and fault.begun <= note["at"] and fault.healed >= since
        for fault in history.faults
    )


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
