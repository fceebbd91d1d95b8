"""Whether what a process holds grows while it lives: what a long run is for."""

import dataclasses
import itertools
import statistics

from history import Violation

# Until then a process comes to hold what it needs.
WARM_UP_SECS = 10 * 60
# Over less time a slope says nothing.
LEAST_SECS = 30 * 60
LIMIT_KIB_AN_HOUR = 1024
# From the first quarter of its life to the last one; for the second one see health.py.
MORE = {"own_files": (2, "files"), "broker_threads": (4, "threads for brokers")}


@dataclasses.dataclass
class Growth:
    member: str
    hours: float
    # The median of the slopes between any two samples: it heeds neither a peak nor a step down.
    kib_an_hour: float
    # By what is held: in the first quarter and in the last one.
    held: dict
    at: float


def growths(history):
    """Of each process that has lived for long enough."""
    lives = {}
    for note in history.noted("measured"):
        if note["when"] == "sample":
            lives.setdefault((note["member"], note["pid"]), []).append(note)
    for (member, _), notes in sorted(lives.items()):
        warm = [note for note in notes if note["at"] >= notes[0]["at"] + WARM_UP_SECS]
        if warm and warm[-1]["at"] - warm[0]["at"] >= LEAST_SECS:
            hours = (warm[-1]["at"] - warm[0]["at"]) / 3600
            quarter = max(1, len(warm) // 4)
            parts = warm[:quarter], warm[-quarter:]
            held = {what: [statistics.median(note[what] for note in part) for part in parts] for what in MORE}
            yield Growth(member, hours, slope(warm), held, warm[0]["at"])


def slope(notes):
    pairs = itertools.combinations(notes, 2)
    return statistics.median((b["rss_kib"] - a["rss_kib"]) / (b["at"] - a["at"]) * 3600 for a, b in pairs)


def no_growth(history):
    """10: neither memory nor files of a process grow while it lives; where processes were spared for that, it was looked at."""
    found = list(growths(history))
    least_secs = max(LEAST_SECS, (history.ended - history.begun - WARM_UP_SECS) / 2)
    for member in history.settings.spared:
        hours = max((growth.hours for growth in found if growth.member == member), default=0)
        if hours * 3600 < least_secs:
            yield Violation(10, f"{member} was watched for {hours:.1f} h, not for {least_secs / 3600:.1f} h", history.begun)
    for growth in found:
        where = f"{growth.member} over {growth.hours:.1f} h"
        if growth.kib_an_hour >= LIMIT_KIB_AN_HOUR:
            yield Violation(10, f"memory of {where}: {growth.kib_an_hour / 1024:+.2f} MiB an hour", growth.at)
        for what, (more, name) in MORE.items():
            before, after = growth.held[what]
            if after > before + more:
                yield Violation(10, f"{name} of {where}: {before:.0f}, then {after:.0f}", growth.at)


def lines(history):
    """For a person."""
    for growth in growths(history):
        before, after = growth.held["own_files"]
        yield (f"{growth.member}: {growth.kib_an_hour / 1024:+.2f} MiB an hour over {growth.hours:.1f} h, "
               f"{before:.0f} files of its own, then {after:.0f}")
